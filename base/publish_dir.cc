#include "base/publish_dir.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/fault_point.h"
#include "base/status_macros.h"

namespace forkd {
namespace {

absl::Status SyncBlocking(int fd, absl::string_view name) {
  // Never retried: after a failed fsync the kernel may have dropped the dirty pages (fsync(2), "errors").
  if (::fsync(fd) != 0) { return ErrnoError(errno, absl::StrCat("fsync ", Quoted(name))); }
  return absl::OkStatus();
}

}  // namespace

absl::Status PublishDirBlocking(int parent_fd, absl::string_view from, absl::string_view to) {
  const std::string source(from);
  const std::string target(to);
  FORKD_RETURN_IF_ERROR(FaultPoint("publish.before_sync"));
  FORKD_ASSIGN_OR_RETURN(const UniqueFd dir, OpenBeneath(parent_fd, from, O_RDONLY | O_DIRECTORY));
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectoryBlocking(dir.get()));
  for (const std::string& name : names) {
    FORKD_ASSIGN_OR_RETURN(const UniqueFd file, OpenBeneath(dir.get(), name, O_RDONLY | O_NONBLOCK));
    struct stat status = {};
    if (::fstat(file.get(), &status) != 0) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(name))); }
    if (!S_ISREG(status.st_mode)) {
      return Error(absl::StatusCode::kInternal, Reason::kInternal, absl::StrCat("publish ", Quoted(from), ": ", Quoted(name), " is not a regular file"));
    }
    FORKD_RETURN_IF_ERROR(SyncBlocking(file.get(), name));
  }
  FORKD_RETURN_IF_ERROR(SyncBlocking(dir.get(), from));
  FORKD_RETURN_IF_ERROR(FaultPoint("publish.before_rename"));
  if (::renameat2(parent_fd, source.c_str(), parent_fd, target.c_str(), RENAME_NOREPLACE) != 0) {
    if (errno == EEXIST) { return Error(absl::StatusCode::kAlreadyExists, Reason::kInternal, absl::StrCat(Quoted(to), " exists")); }
    return ErrnoError(errno, absl::StrCat("rename ", Quoted(from), " to ", Quoted(to)));
  }
  absl::Status status = FaultPoint("publish.after_rename");
  if (status.ok()) { status = SyncBlocking(parent_fd, "the parent folder"); }
  if (!status.ok()) {
    // Nobody has been told that it exists, so it must not. Should even this fail, the error above still says that the call did not succeed, and
    // the caller's reconciliation finds a folder without a row.
    (void)::renameat2(parent_fd, target.c_str(), parent_fd, source.c_str(), RENAME_NOREPLACE);
  }
  return status;
}

}  // namespace forkd
