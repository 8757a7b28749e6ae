// Standby children: restored, primed by one exec and one eval (what the first user will run, so that its code is translated), and stopped. A
// claim resumes one and makes it a machine of its own; process start, load and cold code are out of the path. A child that waits uses no CPU.
//
// Sized by demand: what a snapshot's recent forks asked for at once, unless a target was set. Refilled one at a time while no fork is under way,
// from memory that nobody else wants: when a reservation fails, standby children are the first to go.
#ifndef FORKD_ENGINE_STANDBY_POOL_H_
#define FORKD_ENGINE_STANDBY_POOL_H_

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/async.h"
#include "base/async_event.h"
#include "base/ids.h"
#include "base/runtime.h"
#include "engine/admission.h"
#include "engine/resident_snapshots.h"
#include "engine/specs.h"
#include "guest/client/agent_client.h"
#include "vmm/vmm.h"

namespace forkd::engine {

// A restored VM whose agent is connected: a child that is nobody's yet.
struct StandbyChild {
  std::string run_dir;
  std::shared_ptr<const ResidentSnapshot> origin;
  MemoryReservation reservation;
  std::unique_ptr<vmm::Vm> vm;
  std::shared_ptr<guest::AgentClient> agent;
  // Its VM or its agent's connection has ended while it waited.
  bool dead = false;
};

struct StandbyOptions {
  // Children to keep for each snapshot; nullopt: by demand.
  std::optional<int> fixed_target;
  // Most that demand alone asks for.
  int max_automatic = 8;
  // How long a fork counts as demand.
  std::chrono::seconds demand_window{600};
};

// I/O thread only.
class StandbyPool {
 public:
  // Makes one child of a snapshot, primed and paused, its reservation included.
  using Make = std::function<Task<absl::StatusOr<std::unique_ptr<StandbyChild>>>(SnapshotTag)>;
  // Ends one and removes what it left.
  using Discard = std::function<Task<void>(std::shared_ptr<StandbyChild>)>;

  StandbyPool(Runtime* runtime, StandbyOptions options, Make make, Discard discard);

  // Up to `n` children that were made of exactly `origin`; what is missing is a miss. Counts as demand.
  std::vector<std::unique_ptr<StandbyChild>> Claim(const SnapshotTag& tag, int n, const std::shared_ptr<const ResidentSnapshot>& origin);
  // While at least one is held the pool makes nothing.
  class Quiet {
   public:
    explicit Quiet(StandbyPool* pool) : pool_(pool) { ++pool_->quiet_; }
    Quiet(Quiet&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)) {}
    ~Quiet();

   private:
    StandbyPool* pool_;
  };

  // A target of the operator's for one snapshot; nullopt: back to the default.
  void SetTarget(const SnapshotTag& tag, std::optional<int> target);
  StandbyLevels LevelsOf(const SnapshotTag& tag) const;
  // Gives one child's memory back, the least wanted first. False if there is none.
  bool EvictOne();
  // The snapshot goes away: so do its children.
  void Forget(const SnapshotTag& tag);
  // Ends the refill and every child. Returns when all are gone.
  Task<void> ShutDown();
  // Runs until ShutDown.
  Task<void> RefillLoop();

 private:
  struct Shelf {
    std::deque<std::unique_ptr<StandbyChild>> ready;
    std::optional<int> target;
    std::deque<std::pair<std::chrono::steady_clock::time_point, int>> demand;
    std::chrono::steady_clock::time_point not_before{};  // after a child could not be made
    std::int64_t hits = 0;
    std::int64_t misses = 0;
  };
  int TargetOf(const Shelf& shelf) const;
  void DropDead(Shelf& shelf);
  void DiscardSoon(std::unique_ptr<StandbyChild> child);

  Runtime* const runtime_;
  const StandbyOptions options_;
  const Make make_;
  const Discard discard_;
  std::map<SnapshotTag, Shelf> shelves_;
  AsyncEvent wake_;
  AsyncEvent ended_;
  AsyncEvent all_discarded_;
  int discarding_ = 0;
  int quiet_ = 0;
  bool stopping_ = false;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_STANDBY_POOL_H_
