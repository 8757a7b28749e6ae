#include "base/beneath.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace forkd {
namespace {

// Folders within folders that RemoveTreeBlocking follows. Our own trees have one level; whoever made 32 did not mean well.
constexpr int kMaxDepth = 32;

absl::Status RemoveTree(int dir_fd, const std::string& name, int depth) {
  if (::unlinkat(dir_fd, name.c_str(), 0) == 0 || errno == ENOENT) { return absl::OkStatus(); }
  // Linux answers EISDIR for a folder; POSIX allows EPERM.
  if (errno != EISDIR && errno != EPERM) { return ErrnoError(errno, absl::StrCat("remove ", Quoted(name))); }
  if (depth >= kMaxDepth) { return Error(absl::StatusCode::kInternal, Reason::kSystemCall, absl::StrCat("remove ", Quoted(name), ": nested too deep")); }
  absl::StatusOr<UniqueFd> dir = OpenBeneath(dir_fd, name, O_RDONLY | O_DIRECTORY);
  if (!dir.ok()) { return absl::IsNotFound(dir.status()) ? absl::OkStatus() : dir.status(); }
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> entries, ListDirectoryBlocking(dir->get()));
  for (const std::string& entry : entries) { FORKD_RETURN_IF_ERROR(RemoveTree(dir->get(), entry, depth + 1)); }
  if (::unlinkat(dir_fd, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) { return ErrnoError(errno, absl::StrCat("remove ", Quoted(name))); }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> OpenBeneath(int dir_fd, absl::string_view path, int flags, mode_t mode) {
  if (path.find('\0') != absl::string_view::npos) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostPathRefused, absl::StrCat("path ", Quoted(path), " has a NUL byte"));
  }
  open_how how = {};
  how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC);
  how.mode = (flags & O_CREAT) != 0 ? mode : 0;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const std::string terminated(path);
  long fd = -1;
  // EAGAIN: a rename elsewhere raced with the kernel's walk (openat2(2)); it says to try again, and not for ever.
  for (int attempt = 0; attempt < 16; ++attempt) {
    fd = ::syscall(SYS_openat2, dir_fd, terminated.c_str(), &how, sizeof how);
    if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) { break; }
  }
  if (fd >= 0) { return UniqueFd(static_cast<int>(fd)); }
  const int saved = errno;
  if (saved == ELOOP || saved == EXDEV) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostPathRefused,
                 absl::StrCat("path ", Quoted(path), " leads through a symlink or out of its folder"))
        .Meta("path", path);
  }
  return ErrnoError(saved, absl::StrCat("open ", Quoted(path)));
}

absl::StatusOr<std::vector<std::string>> ListDirectoryBlocking(int dir_fd) {
  // A descriptor of its own: readdir's position must not be shared with other users of dir_fd.
  FORKD_ASSIGN_OR_RETURN(UniqueFd own, OpenBeneath(dir_fd, ".", O_RDONLY | O_DIRECTORY));
  DIR* const dir = ::fdopendir(own.get());
  if (dir == nullptr) { return ErrnoError(errno, "list a folder"); }
  (void)own.release();  // closedir closes it
  std::vector<std::string> names;
  int saved = 0;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(dir);
    if (entry == nullptr) {
      saved = errno;
      break;
    }
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") { names.emplace_back(name); }
  }
  ::closedir(dir);
  if (saved != 0) { return ErrnoError(saved, "list a folder"); }
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status RemoveTreeBlocking(int dir_fd, absl::string_view name) { return RemoveTree(dir_fd, std::string(name), 0); }

absl::Status WriteAllBlocking(int fd, absl::string_view bytes, std::uint64_t offset, absl::string_view what) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) { continue; }
      return ErrnoError(errno, absl::StrCat("write ", what));
    }
    bytes.remove_prefix(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status ReadAllBlocking(int fd, absl::Span<char> bytes, std::uint64_t offset, absl::string_view what) {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) { continue; }
      return ErrnoError(errno, absl::StrCat("read ", what));
    }
    if (n == 0) { return absl::OutOfRangeError(absl::StrCat(what, " ends at byte ", offset, ", ", bytes.size(), " bytes early")); }
    bytes.remove_prefix(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace forkd
