// The life of snapshots and sandboxes: what the daemon does, apart from how it is called. One file an operation (create_snapshot.cc, fork.cc,
// branch.cc, …); this class is what they share.
//
// I/O thread only. Results that a client sees come from memory; the registry is written before a VM exists and after each change of state, so
// that a successor finds everything (recover.cc).
#ifndef FORKD_ENGINE_ENGINE_H_
#define FORKD_ENGINE_ENGINE_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/async.h"
#include "base/async_event.h"
#include "base/blocking_pool.h"
#include "base/deadline.h"
#include "base/ids.h"
#include "base/runtime.h"
#include "cgroup/cgroup_tree.h"
#include "engine/admission.h"
#include "engine/images.h"
#include "engine/registry/registry.h"
#include "engine/resident_snapshots.h"
#include "engine/sandbox.h"
#include "engine/specs.h"
#include "engine/standby_pool.h"
#include "snapshot/store.h"
#include "vmm/vmm.h"

namespace forkd::engine {

struct EngineOptions {
  std::string state_dir;       // absolute
  std::string snapshot_root;   // absolute; where the store keeps its snapshots
  int64_t memory_budget_mib = 0;
  int restore_window = 2;      // restores under way at once in one call: about as many as there are cores
  int max_sandboxes = 10000;
  StandbyOptions standby;
};

// One call that uses a sandbox's agent; while it lives the sandbox is not idle.
class ActiveAgent {
 public:
  ActiveAgent(std::shared_ptr<Sandbox> sandbox, std::shared_ptr<guest::AgentClient> agent);
  ~ActiveAgent();
  ActiveAgent(ActiveAgent&&) noexcept = default;
  ActiveAgent& operator=(ActiveAgent&&) = delete;
  guest::AgentClient* operator->() const { return agent_.get(); }
  const std::shared_ptr<guest::AgentClient>& client() const { return agent_; }
  // An error of the agent channel, told as what befell the sandbox: deleted, failed, or the error itself.
  absl::Status Explain(const absl::Status& status) const;

 private:
  std::shared_ptr<Sandbox> sandbox_;
  std::shared_ptr<guest::AgentClient> agent_;
};

// Events of sandboxes, in order, to one watcher. Bounded: a watcher that falls kMaxQueued behind is cut off with RESOURCE_EXHAUSTED.
class EventQueue {
 public:
  static constexpr std::size_t kMaxQueued = 4096;
  explicit EventQueue(Executor executor) : ready_(std::move(executor)) {}
  void Push(const SandboxEvent& event);
  void Close();
  // Empty when it was closed or cut off.
  Task<std::optional<SandboxEvent>> Next(Deadline deadline);
  bool overflowed() const { return overflowed_; }

 private:
  std::list<SandboxEvent> events_;
  AsyncEvent ready_;
  bool closed_ = false;
  bool overflowed_ = false;
};

class Engine {
 public:
  struct Parts {
    Runtime* runtime;
    BlockingPool* pool;
    Registry* registry;
    snapshot::SnapshotStore* store;
    vmm::VmDriver* driver;
    GuestImages* images;
    cgroup::CgroupTree* cgroups;  // null where the host has no controllers: then a quota that is asked for is refused
  };
  // Borrows its parts; they outlive it.
  Engine(Parts parts, EngineOptions options);
  ~Engine();

  // Adopts what an earlier daemon left running and cleans what it left half done. Before anything else.
  Task<absl::Status> Recover();
  // No new changes from here on, and every watcher's stream ends.
  void BeginShutDown();
  // When no call is under way any more: with `stop_sandboxes` every sandbox is deleted, otherwise they go on without a daemon.
  Task<void> ShutDown(bool stop_sandboxes);

  // ---- Snapshots ----
  Task<absl::StatusOr<SnapshotView>> CreateSnapshot(CreateSnapshotSpec spec, Deadline deadline);
  std::vector<SnapshotView> ListSnapshots() const;
  absl::StatusOr<SnapshotView> GetSnapshot(const SnapshotTag& tag) const;
  struct SnapshotDetail {
    explicit SnapshotDetail(SnapshotView v) : view(std::move(v)) {}
    SnapshotView view;
    snapshot::Manifest manifest;
    snapshot::SnapshotSizes sizes;
    Dependents dependents;
    std::vector<SnapshotTag> ancestors;
  };
  Task<absl::StatusOr<SnapshotDetail>> DescribeSnapshot(SnapshotTag tag);
  enum class DeleteMode { kRefuseDependents, kCascade, kForce };
  Task<absl::Status> DeleteSnapshot(SnapshotTag tag, DeleteMode mode);

  // ---- Sandboxes ----
  Task<absl::StatusOr<ForkResult>> Fork(ForkSpec spec, Deadline deadline);
  std::vector<SandboxView> ListSandboxes() const;
  absl::StatusOr<SandboxView> GetSandbox(const SandboxId& id) const;
  // Ends the VM at once, whatever runs in it or on it. NOT_FOUND SANDBOX_UNKNOWN.
  Task<absl::Status> DeleteSandbox(SandboxId id);
  Task<absl::StatusOr<SandboxView>> PauseSandbox(SandboxId id, Deadline deadline);
  Task<absl::StatusOr<SandboxView>> ResumeSandbox(SandboxId id, Deadline deadline);
  Task<absl::StatusOr<SnapshotView>> Branch(BranchSpec spec, Deadline deadline);
  // The agent of a running sandbox, reconnected if need be. NOT_FOUND SANDBOX_UNKNOWN; FAILED_PRECONDITION SANDBOX_NOT_RUNNING; UNAVAILABLE
  // AGENT_UNREACHABLE.
  Task<absl::StatusOr<ActiveAgent>> Agent(SandboxId id, Deadline deadline);

  // The queue is fed until it is destroyed. `include_current`: one kCurrent event for each sandbox first.
  std::shared_ptr<EventQueue> Watch(bool include_current);

  const Admission& admission() const { return admission_; }
  const vmm::VmDriver& driver() const { return *parts_.driver; }
  const EngineOptions& options() const { return options_; }

 private:
  using SandboxPtr = std::shared_ptr<Sandbox>;

  absl::StatusOr<SandboxPtr> Find(const SandboxId& id) const;
  std::string RunDirOf(absl::string_view id) const;
  std::string SnapshotDirOf(const SnapshotTag& tag) const;
  Task<absl::Status> MakeRunDir(std::string path);
  Task<void> RemoveRunDir(std::string path);
  // Writes the rows as they are now, in one transaction with the call's reply where there is an idempotency key.
  Task<absl::Status> PersistAll(std::vector<SandboxPtr> sandboxes, std::optional<IdempotentResult> reply);
  // Writes the row as it is now. What the registry refuses is logged and answered.
  Task<absl::Status> Persist(SandboxPtr sandbox);
  void Announce(SandboxEventKind kind, const Sandbox& sandbox);
  void SetState(Sandbox& sandbox, SandboxState state);

  // fork.cc
  Task<void> StartChild(SandboxPtr sandbox, std::shared_ptr<const ResidentSnapshot> origin, Deadline deadline, absl::Status* result);
  Task<absl::Status> StartChildSteps(SandboxPtr sandbox, std::shared_ptr<const ResidentSnapshot> origin, Deadline deadline);
  // Resumes a standby child as this sandbox. AbandonClaim gives up one that failed, so that another can be restored in its place.
  Task<absl::Status> Claim(SandboxPtr sandbox, Deadline deadline);
  Task<void> AbandonClaim(SandboxPtr sandbox);
  // Makes the guest a machine of its own: fresh entropy, clock, names, generators. Fails if any step fails.
  Task<absl::Status> PrepareGuest(Sandbox* sandbox, bool kill_orphans, Deadline deadline);
  static Task<absl::Status> SendIdentity(std::shared_ptr<guest::AgentClient> agent, std::string hostname, std::int64_t generation, bool kill_orphans,
                                         Deadline deadline);
  // Ends the programs in the guest that a connection of before had started and that were not detached. Names stay; entropy is welcome any time.
  Task<absl::Status> KillOrphans(std::shared_ptr<guest::AgentClient> agent, Deadline deadline);
  std::int64_t NextGuestGeneration();
  // Gives up what is kept for speed alone, one thing at a time, until the reservation fits or nothing is left to give up.
  absl::StatusOr<MemoryReservation> ReserveOrEvict(int64_t mib, std::string what);

  // quotas.cc
  // The cgroup leaf of what runs in this run folder; the same name after a restart of the daemon.
  std::string LeafOf(const std::string& run_dir) const;
  // Makes the leaf; its descriptors are for the VMM to join by. Empty, and no leaf, where the host has no controllers and no quota is asked for.
  Task<absl::StatusOr<std::vector<UniqueFd>>> MakeLeaf(std::string run_dir, std::optional<std::int64_t> memory_limit_mib);
  Task<absl::Status> ApplyQuota(std::string run_dir, std::optional<std::int64_t> memory_limit_mib);
  Task<void> RemoveLeaf(std::string run_dir);
  // Removes every leaf of ours that no sandbox has, and our own group with the last one.
  Task<void> SweepCgroups();
  // True if the kernel has killed something in the leaf because its memory limit was reached.
  Task<bool> RanOutOfMemory(std::string run_dir);

  // restore_child.cc
  // A VM restored on `origin`, paused, in a new run folder. On error nothing is left but the folder.
  Task<absl::StatusOr<std::unique_ptr<vmm::Vm>>> RestoreChild(std::string id, std::string run_dir, std::shared_ptr<const ResidentSnapshot> origin,
                                                              std::optional<std::int64_t> memory_limit_mib, Deadline deadline);
  // Resumes it and connects its agent, in the order that lets its first instructions find the host there.
  Task<absl::StatusOr<std::shared_ptr<guest::AgentClient>>> ResumeAndConnect(vmm::Vm* vm, ttrpc::SyncToken token, Deadline deadline);
  Task<absl::StatusOr<std::unique_ptr<StandbyChild>>> MakeStandby(SnapshotTag tag);
  Task<absl::Status> MakeStandbySteps(StandbyChild* child, std::string id);
  Task<void> DiscardStandby(std::shared_ptr<StandbyChild> child);
  Task<void> StartAll(std::vector<SandboxPtr> sandboxes, std::shared_ptr<const ResidentSnapshot> origin, Deadline deadline,
                      std::vector<absl::Status>* results);
  void WatchExit(const SandboxPtr& sandbox);
  Task<void> HandleExit(SandboxPtr sandbox, std::string reason, std::string text);
  // Ends everything of a sandbox but its row. Idempotent.
  Task<void> TearDown(SandboxPtr sandbox);

  // create_snapshot.cc
  struct RootBuild;
  Task<absl::StatusOr<SnapshotView>> BuildRoot(std::shared_ptr<RootBuild> build, Deadline deadline);
  Task<void> DropSnapshot(SnapshotTag tag);
  void FailOrphans();

  // branch.cc
  Task<absl::StatusOr<SnapshotView>> BranchSteps(SandboxPtr sandbox, BranchSpec spec, SnapshotRow row, Deadline deadline);

  // recover.cc
  Task<void> Adopt(SandboxPtr sandbox);

  // expire.cc
  Task<void> ExpireLoop();
  void RescheduleExpiry() { expiry_changed_.Set(); }

  Parts parts_;
  const EngineOptions options_;
  // Keeps the cgroups of two daemons on one host apart: named after the state folder.
  const std::string instance_;
  Admission admission_;
  ResidentSnapshots resident_;
  StandbyPool standby_;
  std::int64_t standby_sequence_ = 0;
  SandboxIdGenerator ids_;
  std::map<SandboxId, SandboxPtr> sandboxes_;
  std::map<SnapshotTag, SnapshotView> snapshots_;
  std::list<std::weak_ptr<EventQueue>> watchers_;
  std::int64_t event_sequence_ = 0;
  std::int64_t next_guest_generation_ = 0;
  AsyncEvent expiry_changed_;
  AsyncEvent expiry_ended_;
  bool shutting_down_ = false;
};

// Seconds since the epoch.
std::int64_t NowUnix();

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_ENGINE_H_
