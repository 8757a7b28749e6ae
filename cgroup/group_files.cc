#include "cgroup/group_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/pidfd.h"
#include "base/reasons.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "cgroup/quota_writes.h"

namespace forkd::cgroup {

absl::Status CheckLeafPath(absl::string_view path, absl::string_view field) {
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    const bool good = !part.empty() && part.size() <= 128 && part[0] != '.' &&
                      std::all_of(part.begin(), part.end(), [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-'; });
    if (!good) { return InvalidField(field, absl::StrCat(Quoted(path), " is not a group's path of parts [A-Za-z0-9_.-]")); }
  }
  return absl::OkStatus();
}

bool IsDirectory(const std::string& path) {
  struct stat file;
  return ::stat(path.c_str(), &file) == 0 && S_ISDIR(file.st_mode);
}

absl::Status MakeDirectories(const std::string& base, absl::string_view below) {
  std::string path = base;
  for (absl::string_view part : absl::StrSplit(below, '/', absl::SkipEmpty())) {
    absl::StrAppend(&path, "/", part);
    if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) { return ErrnoError(errno, absl::StrCat("mkdir ", Quoted(path))); }
  }
  return absl::OkStatus();
}

absl::Status RemoveGroup(const std::string& path) {
  if (::rmdir(path.c_str()) == 0 || errno == ENOENT) { return absl::OkStatus(); }
  if (errno == EBUSY) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSandboxBusy,
                 absl::StrCat("group ", Quoted(path), " still holds processes; kill them first"));
  }
  return ErrnoError(errno, absl::StrCat("rmdir ", Quoted(path)));
}

std::vector<std::string> ChildGroups(const std::string& path) {
  std::vector<std::string> names;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) { return names; }
  while (const dirent* entry = ::readdir(dir)) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != ".." && IsDirectory(absl::StrCat(path, "/", name))) { names.emplace_back(name); }
  }
  ::closedir(dir);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) { return ErrnoError(errno, absl::StrCat("open ", Quoted(path))); }
  // cgroup.procs of a group with the kernel's largest number of pids is under 32 MiB; a leaf of ours has far fewer.
  constexpr std::size_t kMaxBytes = 4 << 20;
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) { continue; }
    if (n < 0) { return ErrnoError(errno, absl::StrCat("read ", Quoted(path))); }
    if (n == 0) { return text; }
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > kMaxBytes) {
      return Error(absl::StatusCode::kInternal, Reason::kSystemCall, absl::StrCat(Quoted(path), " is larger than 4 MiB"));
    }
  }
}

std::string ReadFileOrEmpty(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  return text.ok() ? *std::move(text) : std::string();
}

absl::Status WriteFile(const std::string& path, absl::string_view value) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) { return ErrnoError(errno, absl::StrCat("open ", Quoted(path))); }
  ssize_t n;
  do {
    n = ::write(fd.get(), value.data(), value.size());
  } while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(value.size())) { return absl::OkStatus(); }
  const int saved_errno = n < 0 ? errno : EIO;
  const std::string what = absl::StrCat("write ", Quoted(value), " to ", Quoted(path));
  if (saved_errno == EBUSY) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kLimitReached,
                 absl::StrCat(what, ": more is in use than this limit allows; choose a larger one"));
  }
  if (saved_errno == ESRCH) { return Error(absl::StatusCode::kNotFound, Reason::kSystemCall, absl::StrCat(what, ": no such process")); }
  return ErrnoError(saved_errno, what);
}

absl::StatusOr<std::vector<pid_t>> ReadProcesses(const std::string& procs_file) {
  FORKD_ASSIGN_OR_RETURN(const std::string text, ReadFile(procs_file));
  std::vector<pid_t> pids;
  for (const std::int64_t pid : ParsePids(text)) { pids.push_back(static_cast<pid_t>(pid)); }
  return pids;
}

absl::Status SignalKill(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) {
    const absl::StatusOr<ProcessId> id = Pidfd::IdentityOf(pid);
    if (!id.ok()) { continue; }
    const absl::StatusOr<Pidfd> process = Pidfd::Open(*id);
    if (!process.ok()) { continue; }
    FORKD_RETURN_IF_ERROR(process->SendSignal(SIGKILL));
  }
  return absl::OkStatus();
}

}  // namespace forkd::cgroup
