#include "guest/agent/file_path.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest/agent/console.h"

namespace forkd::agent {

namespace pb = ::forkd::agent::v1;

Status CheckPath(const std::string& path) {
  if (path.empty() || path[0] != '/') { return {Code::kInvalidArgument, "path: must be absolute"}; }
  if (path.size() >= PATH_MAX) { return {Code::kInvalidArgument, "path: longer than 4095 bytes"}; }
  if (path.find('\0') != std::string::npos) { return {Code::kInvalidArgument, "path: contains a NUL byte"}; }
  return {};
}

Status FileError(int error, const std::string& path) {
  Code code = Code::kFailedPrecondition;
  switch (error) {
    case ENOENT: code = Code::kNotFound; break;
    case EACCES:
    case EPERM:
    case EROFS: code = Code::kPermissionDenied; break;
    case EEXIST: code = Code::kAlreadyExists; break;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case EFBIG: code = Code::kResourceExhausted; break;
    case ENAMETOOLONG: code = Code::kInvalidArgument; break;
    default: break;
  }
  return {code, path + ": " + ErrnoText(error)};
}

UniqueFd OpenPath(const std::string& path, int flags, bool no_symlinks) {
  if (!no_symlinks) { return UniqueFd(open(path.c_str(), flags | O_CLOEXEC)); }
  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_NO_SYMLINKS;
  return UniqueFd(static_cast<int>(syscall(SYS_openat2, AT_FDCWD, path.c_str(), &how, sizeof how)));
}

Status SplitPath(const std::string& path, PathParts* parts) {
  if (const Status status = CheckPath(path); !status.ok()) { return status; }
  const std::size_t last = path.find_last_not_of('/');
  if (last == std::string::npos) { return {Code::kInvalidArgument, "path: is the root folder"}; }
  const std::size_t slash = path.rfind('/', last);
  parts->name = path.substr(slash + 1, last - slash);
  parts->folder = path.substr(0, slash == 0 ? 1 : slash);
  if (parts->name == "." || parts->name == "..") { return {Code::kInvalidArgument, "path: ends in . or .."}; }
  if (parts->name.size() > NAME_MAX) { return {Code::kInvalidArgument, "path: a name is longer than 255 bytes"}; }
  return {};
}

UniqueFd MakeFolders(const std::string& folder, bool no_symlinks) {
  UniqueFd opened = OpenPath(folder, O_PATH | O_DIRECTORY, no_symlinks);
  if (opened || errno != ENOENT) { return opened; }
  UniqueFd at(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  std::size_t start = 0;
  while (at) {
    start = folder.find_first_not_of('/', start);
    if (start == std::string::npos) { break; }
    const std::size_t end = folder.find('/', start);
    const std::string part = folder.substr(start, end - start);
    if (mkdirat(at.get(), part.c_str(), 0755) != 0 && errno != EEXIST) { return UniqueFd(); }
    at = UniqueFd(openat(at.get(), part.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC | (no_symlinks ? O_NOFOLLOW : 0)));
    if (end == std::string::npos) { break; }
    start = end;
  }
  return at;
}

void Describe(const std::string& name, const struct stat& info, pb::FileInfo* out) {
  out->set_name(name);
  out->set_type(S_ISREG(info.st_mode)   ? pb::FILE_TYPE_REGULAR
                : S_ISDIR(info.st_mode) ? pb::FILE_TYPE_DIRECTORY
                : S_ISLNK(info.st_mode) ? pb::FILE_TYPE_SYMLINK
                                        : pb::FILE_TYPE_OTHER);
  out->set_size_bytes(static_cast<uint64_t>(info.st_size));
  out->set_mode(info.st_mode & 07777);
  out->set_uid(info.st_uid);
  out->set_gid(info.st_gid);
  out->set_mtime_ns(int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec);
}

void DescribeLink(int folder, const std::string& name, pb::FileInfo* out) {
  char target[PATH_MAX];
  const ssize_t size = readlinkat(folder, name.c_str(), target, sizeof target);
  if (size > 0) { out->set_link_target(target, static_cast<std::size_t>(size)); }
}

}  // namespace forkd::agent
