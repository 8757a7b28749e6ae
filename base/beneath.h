// Files reached from a directory's descriptor, never by a path that somebody could have bent: openat2(2) with RESOLVE_BENEATH,
// RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. Linux 5.6 or later.
#ifndef FORKD_BASE_BENEATH_H_
#define FORKD_BASE_BENEATH_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/unique_fd.h"

namespace forkd {

// Opens `path` below `dir_fd`; O_CLOEXEC is added. `mode` counts with O_CREAT alone. NOT_FOUND if absent; FAILED_PRECONDITION
// HOST_PATH_REFUSED where a symlink or `..` leads elsewhere; else as ErrnoError. Blocking, any thread.
absl::StatusOr<UniqueFd> OpenBeneath(int dir_fd, absl::string_view path, int flags, mode_t mode = 0);

// Names in the directory without `.` and `..`, sorted.
absl::StatusOr<std::vector<std::string>> ListDirectoryBlocking(int dir_fd);

// Removes `name` below `dir_fd` with everything in it, following no symlink and crossing no mount. OK if absent.
absl::Status RemoveTreeBlocking(int dir_fd, absl::string_view name);

// Writes, reads all of it at `offset`, over short counts and EINTR. A read that meets the end of the file early is OUT_OF_RANGE. `what`
// names the file in errors.
absl::Status WriteAllBlocking(int fd, absl::string_view bytes, std::uint64_t offset, absl::string_view what);
absl::Status ReadAllBlocking(int fd, absl::Span<char> bytes, std::uint64_t offset, absl::string_view what);

}  // namespace forkd

#endif  // FORKD_BASE_BENEATH_H_
