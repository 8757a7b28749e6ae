#include "engine/registry/state_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace forkd::engine {
namespace {

constexpr char kLockName[] = "lock";

absl::Status Unsafe(const std::string& path, absl::string_view what) {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kStateDirUnsafe, absl::StrCat("state folder ", Quoted(path), " ", what))
      .Meta("state_dir", path);
}

// mkdir -p; what exists is left as it is.
absl::Status MakeFolders(const std::string& path) {
  for (std::size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const bool last = slash == std::string::npos;
    const std::string prefix = path.substr(0, slash);
    if (::mkdir(prefix.c_str(), last ? 0700 : 0755) != 0 && errno != EEXIST) { return ErrnoError(errno, absl::StrCat("make folder ", Quoted(prefix))); }
    if (last) { return absl::OkStatus(); }
  }
}

// The holder writes its pid for people; the lock itself is the kernel's.
std::string HolderOf(int fd) {
  char text[32] = {};
  const ssize_t n = ::pread(fd, text, sizeof text - 1, 0);
  const std::string pid(text, n > 0 ? static_cast<std::size_t>(n) : 0);
  const absl::string_view trimmed = absl::StripSuffix(pid, "\n");
  return trimmed.empty() || trimmed.find_first_not_of("0123456789") != absl::string_view::npos ? "unknown" : std::string(trimmed);
}

}  // namespace

absl::StatusOr<StateDir> StateDir::OpenBlocking(const std::string& path) {
  if (path.size() < 2 || path[0] != '/' || path.find('\0') != std::string::npos) {
    return InvalidField("state_dir", absl::StrCat("must be an absolute path; got ", Quoted(path)));
  }
  const std::string clean(path.substr(0, path.find_last_not_of('/') + 1));
  if (clean.empty()) { return InvalidField("state_dir", "must not be the root folder"); }
  FORKD_RETURN_IF_ERROR(MakeFolders(clean));
  UniqueFd fd(::open(clean.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOTDIR || errno == ELOOP) { return Unsafe(clean, "is a symlink or no folder; name the folder itself"); }
    return ErrnoError(errno, absl::StrCat("open state folder ", Quoted(clean)));
  }
  struct stat status = {};
  if (::fstat(fd.get(), &status) != 0) { return ErrnoError(errno, absl::StrCat("stat state folder ", Quoted(clean))); }
  if (status.st_uid != ::geteuid()) {
    return Unsafe(clean, absl::StrCat("belongs to uid ", status.st_uid, ", the daemon runs as ", ::geteuid(), "; chown it or choose another"));
  }
  if ((status.st_mode & 022) != 0) {
    return Unsafe(clean, absl::StrFormat("can be written by others (mode %04o); chmod 0700 it", status.st_mode & 07777));
  }
  return StateDir(std::move(fd), clean);
}

absl::StatusOr<StateDirLock> StateDirLock::TakeBlocking(const StateDir& dir) {
  FORKD_ASSIGN_OR_RETURN(UniqueFd fd, OpenBeneath(dir.fd(), kLockName, O_RDWR | O_CREAT, 0600));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) { return ErrnoError(errno, absl::StrCat("lock ", Quoted(absl::StrCat(dir.path(), "/", kLockName)))); }
    const std::string holder = HolderOf(fd.get());
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kStateDirInUse,
                 absl::StrCat("state folder ", Quoted(dir.path()), " is in use by another daemon, pid ", holder, "; stop it or choose another --state-dir"))
        .Meta("state_dir", dir.path())
        .Meta("pid", holder);
  }
  if (::ftruncate(fd.get(), 0) != 0) { return ErrnoError(errno, "write the lock file"); }
  FORKD_RETURN_IF_ERROR(WriteAllBlocking(fd.get(), absl::StrCat(::getpid(), "\n"), 0, "the lock file"));
  return StateDirLock(std::move(fd));
}

}  // namespace forkd::engine
