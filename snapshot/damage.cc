#include "snapshot/damage.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd::snapshot {

absl::Status Damaged(absl::string_view file, absl::string_view what) {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotDamaged, absl::StrCat(file, ": ", what)).Meta("file", file);
}

absl::Status OfSnapshot(absl::string_view tag, const absl::Status& status) {
  if (status.ok()) { return status; }
  const std::string context = absl::StrCat("snapshot ", Quoted(tag));
  const std::string reason = ReasonOf(status);
  const bool damaged = reason == ReasonName(Reason::kSnapshotDamaged);
  if (!damaged && reason != ReasonName(Reason::kSnapshotIncompatible)) { return Annotate(status, context); }
  // Both kinds of message begin with the file's name and a colon (Damaged, ParseManifest, ParsePagesHeader).
  const absl::string_view message = status.message();
  return Error(status.code(), damaged ? Reason::kSnapshotDamaged : Reason::kSnapshotIncompatible,
               absl::StrCat(context, ": ", message, damaged ? "; delete and re-create it" : ""))
      .Meta("tag", tag)
      .Meta("file", message.substr(0, message.find(':')))
      .Resource("snapshot", tag);
}

}  // namespace forkd::snapshot
