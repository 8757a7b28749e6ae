// The table `sandboxes`. Each function runs inside the caller's transaction; the meaning and errors are those of Registry's method of that name.
#ifndef FORKD_ENGINE_REGISTRY_SANDBOX_ROWS_H_
#define FORKD_ENGINE_REGISTRY_SANDBOX_ROWS_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/registry/database.h"
#include "engine/registry/rows.h"

namespace forkd::engine {

absl::Status InsertSandbox(Database& db, const SandboxRow& row);
absl::StatusOr<std::int64_t> UpdateSandbox(Database& db, const SandboxRow& row);
absl::StatusOr<SandboxRow> SetSandboxState(Database& db, const SandboxId& id, absl::Span<const SandboxState> from, SandboxState to,
                                           absl::string_view failure);
absl::StatusOr<bool> DeleteSandbox(Database& db, const SandboxId& id);
absl::StatusOr<SandboxRow> GetSandbox(Database& db, const SandboxId& id);
absl::StatusOr<std::vector<SandboxRow>> ListSandboxes(Database& db);
// Live sandboxes (not FAILED) forked from `tag` or sharing its memory image; ordered.
absl::StatusOr<std::vector<SandboxId>> SandboxesOn(Database& db, const SnapshotTag& tag);

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_SANDBOX_ROWS_H_
