// The error of a file that is not what its manifest says.
#ifndef FORKD_SNAPSHOT_DAMAGE_H_
#define FORKD_SNAPSHOT_DAMAGE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace forkd::snapshot {

// FAILED_PRECONDITION SNAPSHOT_DAMAGED, "<file>: <what>", metadata `file`.
absl::Status Damaged(absl::string_view file, absl::string_view what);

// `status` of a check inside the snapshot `tag`, with the tag in the message and, for SNAPSHOT_DAMAGED and SNAPSHOT_INCOMPATIBLE, what to do and
// metadata `tag` and `file`. Other errors get the tag as context.
absl::Status OfSnapshot(absl::string_view tag, const absl::Status& status);

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_DAMAGE_H_
