// The daemon's memory across restarts: one SQLite database (WAL). Rows are written before what they describe exists, so that a killed daemon's
// successor finds everything it must adopt or clean. synchronous=NORMAL: a commit survives kill -9, and a power cut costs at most the newest
// commits, whose processes it killed too; FULL where a snapshot becomes READY, because that promise outlives the machine's power.
//
// All calls block (microseconds to a few milliseconds): use them on a BlockingPool. Thread-safe: one connection behind a mutex. Each call is one
// transaction. Errors common to all: INTERNAL REGISTRY (SQLite's message), RESOURCE_EXHAUSTED DISK_FULL; after an error nothing has changed.
#ifndef FORKD_ENGINE_REGISTRY_REGISTRY_H_
#define FORKD_ENGINE_REGISTRY_REGISTRY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/registry/rows.h"

namespace forkd::engine {

// The result of a finished call, kept for its key; given to the operation that makes the result durable, so that both become so in one
// transaction.
struct IdempotentResult {
  std::string key;
  std::string result;  // serialized reply; at most kMaxIdempotentResultBytes
};
// 1000 sandboxes' rows with labels fit.
inline constexpr std::size_t kMaxIdempotentResultBytes = 8 * 1024 * 1024;
inline constexpr std::size_t kMaxIdempotencyKeyBytes = 64;
inline constexpr std::int64_t kIdempotencyLifetimeSecs = 24 * 60 * 60;

// What BeginIdempotentBlocking found.
struct IdempotentFresh {};  // the caller does the work, then finishes or abandons the key
struct IdempotentReplay {
  std::string result;
};
using IdempotentStart = std::variant<IdempotentFresh, IdempotentReplay>;

class Registry {
 public:
  // Opens `<state_dir>/registry.db` (0600), making or migrating it. FAILED_PRECONDITION REGISTRY: not a database, or written by a newer forkd
  // (names the file and what to do).
  static absl::StatusOr<std::unique_ptr<Registry>> OpenBlocking(const std::string& state_dir);
  ~Registry();

  // True if this object's OpenBlocking made the database. Snapshot folders that lie beside a new registry are not leftovers of deleted rows: the
  // file was lost, and their manifests tell all that their rows need (InsertSnapshotBlocking takes READY rows, roots first).
  bool created() const;

  // ---- Sandboxes ----

  // All or none; generation becomes 1. NOT_FOUND SNAPSHOT_UNKNOWN or FAILED_PRECONDITION SNAPSHOT_NOT_READY if a row's snapshot is not READY at
  // that moment (a snapshot cannot be deleted between the check and the insert); ALREADY_EXISTS INTERNAL if an id is taken.
  absl::Status InsertSandboxesBlocking(absl::Span<const SandboxRow> rows);
  // Writes every field of `row` but id, snapshot_tag, root_tag and created_at_unix, if the stored generation is row.generation; returns the new
  // generation. ABORTED SANDBOX_BUSY if it is another; NOT_FOUND SANDBOX_UNKNOWN.
  absl::StatusOr<std::int64_t> UpdateSandboxBlocking(const SandboxRow& row);
  // The same for several rows, all or none, with a call's result where there is one. Returns the new generations in the rows' order.
  absl::StatusOr<std::vector<std::int64_t>> UpdateSandboxesBlocking(absl::Span<const SandboxRow> rows, const std::optional<IdempotentResult>& result);
  // Moves a sandbox to `to` if its state is one of `from`; `failure` replaces the row's. Returns the row as it is then. FAILED_PRECONDITION
  // SANDBOX_NOT_RUNNING (metadata `state`) if it is in another state; NOT_FOUND SANDBOX_UNKNOWN.
  absl::StatusOr<SandboxRow> SetSandboxStateBlocking(const SandboxId& id, absl::Span<const SandboxState> from, SandboxState to,
                                                     absl::string_view failure = "");
  // False if there was none.
  absl::StatusOr<bool> DeleteSandboxBlocking(const SandboxId& id);
  absl::Status DeleteSandboxesBlocking(absl::Span<const SandboxId> ids);
  // NOT_FOUND SANDBOX_UNKNOWN.
  absl::StatusOr<SandboxRow> GetSandboxBlocking(const SandboxId& id);
  // Ordered by id, that is by creation.
  absl::StatusOr<std::vector<SandboxRow>> ListSandboxesBlocking();

  // ---- Snapshots ----

  // Status is written as the row says. ALREADY_EXISTS TAG_TAKEN, also while another of that tag is being written or has failed. For a branch:
  // NOT_FOUND SNAPSHOT_UNKNOWN if its root is gone.
  absl::Status InsertSnapshotBlocking(const SnapshotRow& row);
  // Writing → ready, with the row's sizes, counts, pause_ms, warning; durable against power loss when it returns (synchronous=FULL). NOT_FOUND
  // SNAPSHOT_UNKNOWN; FAILED_PRECONDITION SNAPSHOT_NOT_READY if it is not being written.
  absl::Status MarkSnapshotReadyBlocking(const SnapshotRow& row, const std::optional<IdempotentResult>& result);
  // Writing → failed; `warning` says why. Errors as above.
  absl::Status MarkSnapshotFailedBlocking(const SnapshotTag& tag, absl::string_view warning);
  enum class DependentsRule { kRefuse, kIgnore };
  // Removes the row. False if there was none. With kRefuse: FAILED_PRECONDITION SNAPSHOT_HAS_DEPENDENTS naming them (metadata `snapshots`,
  // `sandboxes`), checked in the same transaction.
  absl::StatusOr<bool> DeleteSnapshotBlocking(const SnapshotTag& tag, DependentsRule rule);
  // NOT_FOUND SNAPSHOT_UNKNOWN.
  absl::StatusOr<SnapshotRow> GetSnapshotBlocking(const SnapshotTag& tag);
  // Ordered by tag.
  absl::StatusOr<std::vector<SnapshotRow>> ListSnapshotsBlocking();
  // Empty for an unknown tag.
  absl::StatusOr<Dependents> DependentsBlocking(const SnapshotTag& tag);
  // Root first, own tag last. NOT_FOUND SNAPSHOT_UNKNOWN. A parent that was deleted ends the list: it then begins with the oldest known.
  absl::StatusOr<std::vector<SnapshotTag>> LineageBlocking(const SnapshotTag& tag);

  // ---- Idempotency ----

  // Fresh: the key is now in progress and the caller's. Replay: the same request has finished within 24 h. INVALID_ARGUMENT
  // IDEMPOTENCY_KEY_REUSED: another request or method had this key; INVALID_FIELD: the key is empty, over-long or not printable ASCII. ABORTED
  // IDEMPOTENCY_KEY_IN_PROGRESS, with a retry delay: the first call still runs.
  absl::StatusOr<IdempotentStart> BeginIdempotentBlocking(const IdempotencyKey& key, std::int64_t now_unix);
  // Stores the result. A key that is unknown (expired, abandoned) is ignored.
  absl::Status FinishIdempotentBlocking(const IdempotentResult& result);
  // The call failed: the key is free again. OK if it is unknown; a finished key stays.
  absl::Status AbandonIdempotentBlocking(const std::string& key);
  // At start, when no call runs: frees every key in progress. Returns how many.
  absl::StatusOr<int> AbandonAllIdempotentBlocking();
  // Drops keys older than 24 h. Returns how many.
  absl::StatusOr<int> SweepIdempotencyBlocking(std::int64_t now_unix);

 private:
  struct Impl;
  explicit Registry(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_REGISTRY_H_
