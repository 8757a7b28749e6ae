// What the registry remembers: plain values, one struct a table.
#ifndef FORKD_ENGINE_REGISTRY_ROWS_H_
#define FORKD_ENGINE_REGISTRY_ROWS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/ids.h"
#include "base/sha256.h"

namespace forkd::engine {

using Labels = std::map<std::string, std::string>;

// Stored by name, so that the table can be read by people.
enum class SandboxState {
  kStarting,   // row written, VM not handed over yet
  kRunning,
  kPaused,
  kBranching,  // taken by a branch; after a crash the source is resumed and it is kRunning again
  kStopping,   // being deleted
  kFailed,     // its VM ended by itself; `failure` says why
};
absl::string_view SandboxStateName(SandboxState state);  // "STARTING", …
std::optional<SandboxState> SandboxStateFromName(absl::string_view name);

struct SandboxRow {
  explicit SandboxRow(SandboxId id, SnapshotTag snapshot, SnapshotTag root)
      : id(std::move(id)), snapshot_tag(std::move(snapshot)), root_tag(std::move(root)) {}

  SandboxId id;
  SnapshotTag snapshot_tag;  // what it was forked from
  SnapshotTag root_tag;      // whose memory image it shares; snapshot_tag itself if that is a root
  SandboxState state = SandboxState::kStarting;
  std::string vmm;          // "qemu"
  std::string accelerator;  // "tcg", "kvm"
  std::string isolation;    // "hardware", "emulated"
  std::int64_t pid = 0;         // 0: no process yet
  std::uint64_t start_time = 0;  // /proc/PID/stat field 22, clock ticks since boot; with pid it names a process for ever
  std::string run_dir;          // below the state folder: control sockets
  std::string netns;            // empty: none
  Labels labels;
  std::int64_t created_at_unix = 0;
  std::optional<std::int64_t> expires_at_unix;     // nullopt: no lifetime
  std::optional<std::int64_t> idle_timeout_secs;   // nullopt: no idle limit
  std::optional<std::int64_t> memory_limit_mib;    // as requested
  std::int64_t memory_mib = 0;
  std::int32_t vcpus = 0;
  std::int64_t branch_count = 0;
  std::string failure;     // why it is kFailed; guest's bytes in it are escaped
  std::string request_id;  // the call that made it
  // Counts every change of the row; UpdateSandboxBlocking compares it. 1 after the insert.
  std::int64_t generation = 0;
};

enum class SnapshotStatus { kWriting, kReady, kFailed };
absl::string_view SnapshotStatusName(SnapshotStatus status);  // "writing", "ready", "failed": the REST contract's words
std::optional<SnapshotStatus> SnapshotStatusFromName(absl::string_view name);

enum class SnapshotKind { kRoot, kBranch };
absl::string_view SnapshotKindName(SnapshotKind kind);  // "root", "branch"
std::optional<SnapshotKind> SnapshotKindFromName(absl::string_view name);

struct SnapshotRow {
  explicit SnapshotRow(SnapshotTag tag, SnapshotTag root) : tag(std::move(tag)), root_tag(std::move(root)) {}

  SnapshotTag tag;
  SnapshotTag root_tag;  // its own tag for a root
  SnapshotStatus status = SnapshotStatus::kWriting;
  SnapshotKind kind = SnapshotKind::kRoot;
  std::optional<SnapshotTag> parent_tag;   // branches
  std::optional<SandboxId> branched_from;  // branches
  std::int64_t created_at_unix = 0;
  std::int32_t depth = 0;  // branches between it and its root
  std::int64_t pause_ms = 0;
  std::int64_t memory_bytes = 0;         // the guest's RAM
  std::int64_t page_count = 0;           // branches: pages in the set
  std::int64_t physical_bytes = 0;       // on disk, all files
  std::int64_t memory_mib = 0;
  std::int32_t vcpus = 0;
  std::string image;                     // name of the guest image
  std::string captured;                  // what it holds, for people
  std::string warning;                   // REST contract's field; why it failed
  Labels labels;
  std::string request_id;
};

// What rests on a snapshot.
struct Dependents {
  std::vector<SnapshotTag> children;     // branches taken of its sandboxes
  std::vector<SnapshotTag> descendants;  // for a root: every branch that stands on its memory image, children included
  std::vector<SandboxId> sandboxes;      // forked from it, or sharing its memory image
  bool empty() const { return children.empty() && descendants.empty() && sandboxes.empty(); }
};

// Identifies one request that may be repeated.
struct IdempotencyKey {
  std::string key;           // 1-64 bytes, printable ASCII
  std::string method;        // full gRPC name
  Sha256Digest fingerprint;  // of the request's deterministic bytes without the key
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_ROWS_H_
