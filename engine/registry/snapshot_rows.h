// The table `snapshots`. Each function runs inside the caller's transaction; the meaning and errors are those of Registry's method of that name.
#ifndef FORKD_ENGINE_REGISTRY_SNAPSHOT_ROWS_H_
#define FORKD_ENGINE_REGISTRY_SNAPSHOT_ROWS_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/registry/database.h"
#include "engine/registry/rows.h"

namespace forkd::engine {

absl::Status InsertSnapshot(Database& db, const SnapshotRow& row);
absl::Status MarkSnapshotReady(Database& db, const SnapshotRow& row);
absl::Status MarkSnapshotFailed(Database& db, const SnapshotTag& tag, absl::string_view warning);
// Whatever rests on it.
absl::StatusOr<bool> DeleteSnapshot(Database& db, const SnapshotTag& tag);
absl::StatusOr<SnapshotRow> GetSnapshot(Database& db, const SnapshotTag& tag);
absl::StatusOr<std::vector<SnapshotRow>> ListSnapshots(Database& db);
absl::StatusOr<std::vector<SnapshotTag>> Lineage(Database& db, const SnapshotTag& tag);
// OK if the snapshot is READY; NOT_FOUND SNAPSHOT_UNKNOWN; FAILED_PRECONDITION SNAPSHOT_NOT_READY.
absl::Status CheckReady(Database& db, const SnapshotTag& tag);
// Snapshots (not failed ones) whose parent is `tag`; whose root is `tag` and that are not it. Ordered.
absl::StatusOr<std::vector<SnapshotTag>> ChildrenOf(Database& db, const SnapshotTag& tag);
absl::StatusOr<std::vector<SnapshotTag>> DescendantsOf(Database& db, const SnapshotTag& tag);

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_SNAPSHOT_ROWS_H_
