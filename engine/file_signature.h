// A cheap answer to "has anything in this folder changed since?": what stat(2) says of its files.
#ifndef FORKD_ENGINE_FILE_SIGNATURE_H_
#define FORKD_ENGINE_FILE_SIGNATURE_H_

#include <string>

#include "absl/status/statusor.h"

namespace forkd::engine {

// Names, inodes, sizes, mtimes and ctimes of the files in `folder`, one line each. A file cannot be written without changing its ctime. Not a
// proof against root, who can set the clock: for that, verify. Blocking, tens of microseconds. NOT_FOUND if there is no such folder.
absl::StatusOr<std::string> FolderSignatureBlocking(const std::string& folder);

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_FILE_SIGNATURE_H_
