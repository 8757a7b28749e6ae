// Paths that the host names: checked, split, and opened with or without following symlinks.
#ifndef FORKD_GUEST_AGENT_FILE_PATH_H_
#define FORKD_GUEST_AGENT_FILE_PATH_H_

#include <sys/stat.h>

#include <string>

#include "base/unique_fd.h"
#include "guest/agent/connection.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::agent {

// Absolute, shorter than PATH_MAX, no NUL.
Status CheckPath(const std::string& path);

// By an error of a system call on `path`.
Status FileError(int error, const std::string& path);

// As open(2) with O_CLOEXEC; with `no_symlinks`, a symlink anywhere in the path is ELOOP (openat2, RESOLVE_NO_SYMLINKS). -1 and errno on failure.
UniqueFd OpenPath(const std::string& path, int flags, bool no_symlinks);

// The folder of a path and its last part; a trailing slash is dropped. "/" and paths that end in "." or ".." have no last part: INVALID_ARGUMENT.
struct PathParts {
  std::string folder;
  std::string name;
};
Status SplitPath(const std::string& path, PathParts* parts);

// Makes missing folders up to and including `folder`, and opens it. With `no_symlinks` as in OpenPath.
UniqueFd MakeFolders(const std::string& folder, bool no_symlinks);

void Describe(const std::string& name, const struct stat& info, ::forkd::agent::v1::FileInfo* out);
// What the symlink `name` in `folder` says, into `out`.
void DescribeLink(int folder, const std::string& name, ::forkd::agent::v1::FileInfo* out);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_FILE_PATH_H_
