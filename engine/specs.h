// What the engine is asked for and what it answers: plain values. The requests' numbers have been checked against the contract's limits by the
// server; the engine checks what depends on state.
#ifndef FORKD_ENGINE_SPECS_H_
#define FORKD_ENGINE_SPECS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "engine/registry/registry.h"
#include "engine/registry/rows.h"
#include "vmm/vmm.h"

namespace forkd::engine {

struct SandboxView;
struct SnapshotView;
struct ForkResult;

// For a call with an idempotency key: the reply to keep, made from what the call is about to answer. Stored in the transaction that makes the
// result durable, so that a daemon killed right afterwards still replays it.
template <typename Result>
using Remember = std::function<std::optional<IdempotentResult>(const Result&)>;

struct CreateSnapshotSpec {
  explicit CreateSnapshotSpec(SnapshotTag t) : tag(std::move(t)) {}
  SnapshotTag tag;
  // Either a guest image or two host files below the image root.
  std::string image;
  std::string kernel;
  std::string rootfs;
  vmm::MachineShape shape;
  // Replaces the image's warm-up code; "" runs none.
  std::optional<std::string> warmup;
  Labels labels;
  std::string request_id;
  Remember<SnapshotView> remember;
};

struct ForkSpec {
  explicit ForkSpec(SnapshotTag t) : snapshot(std::move(t)) {}
  SnapshotTag snapshot;
  int n = 1;  // 1 … 1000
  bool allow_partial = false;
  std::optional<std::int64_t> memory_limit_mib;
  std::optional<std::int64_t> lifetime_secs;
  std::optional<std::int64_t> idle_timeout_secs;
  Labels labels;
  std::string request_id;
  Remember<ForkResult> remember;
};

struct BranchSpec {
  explicit BranchSpec(SandboxId id, SnapshotTag t) : source(std::move(id)), tag(std::move(t)) {}
  SandboxId source;
  SnapshotTag tag;
  Labels labels;
  std::string request_id;
  Remember<SnapshotView> remember;
};

// A sandbox as it is now.
struct SandboxView {
  explicit SandboxView(SandboxRow r) : row(std::move(r)) {}
  SandboxRow row;
  std::string image;
  std::int64_t failed_at_unix = 0;
  std::string failure_reason;  // machine-readable, with row.failure
  std::int64_t last_used_at_unix = 0;
  std::int64_t ready_ms = 0;    // from the call to RUNNING; 0 after the daemon's restart
  std::int64_t generation = 0;  // what the guest was told at its last preparation
};

struct ForkFailure {
  int index = 0;
  absl::Status status;
};

struct ForkResult {
  std::vector<SandboxView> sandboxes;
  std::vector<ForkFailure> failures;  // with allow_partial alone
};

// Of a snapshot's pool (standby_pool.h).
struct StandbyLevels {
  int target = 0;
  int ready = 0;
  std::int64_t hits = 0;    // children that forks took from the pool
  std::int64_t misses = 0;  // children that had to be restored
};

struct SnapshotView {
  explicit SnapshotView(SnapshotRow r) : row(std::move(r)) {}
  SnapshotRow row;
  std::string dir;
  std::string vmm;
  std::string vmm_version;
  std::string accelerator;
  std::string image_hash;
  std::string agent_version;
  std::int64_t device_state_bytes = 0;
  std::int64_t pause_us = 0;
  StandbyLevels standby;
};

enum class SandboxEventKind { kCurrent, kCreated, kChanged, kDeleted };
struct SandboxEvent {
  SandboxEventKind kind;
  SandboxView sandbox;
  std::int64_t at_unix_ms = 0;
  std::int64_t sequence = 0;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_SPECS_H_
