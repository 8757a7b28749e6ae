// How a finished folder becomes visible: whole or not at all, also after a power cut.
#ifndef FORKD_BASE_PUBLISH_DIR_H_
#define FORKD_BASE_PUBLISH_DIR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace forkd {

// fsyncs every regular file in `parent_fd`/`from`, fsyncs the folder, renames it to `to` (which must not exist), fsyncs the parent. `from` and
// `to` are single names. The files' writers must be done. Fault points: publish.before_sync, publish.before_rename, publish.after_rename.
// ALREADY_EXISTS (reason INTERNAL: the caller knows the better one) if `to` exists; RESOURCE_EXHAUSTED DISK_FULL; else as ErrnoError. After an
// error before the rename `from` is as it was; after an error behind it (the parent's fsync) the folder is visible and this undoes the rename.
// Blocking, any thread.
absl::Status PublishDirBlocking(int parent_fd, absl::string_view from, absl::string_view to);

}  // namespace forkd

#endif  // FORKD_BASE_PUBLISH_DIR_H_
