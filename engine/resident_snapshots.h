// Snapshots that are in memory and ready to be forked: a root's image as a sealed memfd, a branch's page set and device state. Loaded and
// verified once; children share what is loaded. What no sandbox uses is dropped when memory is wanted.
#ifndef FORKD_ENGINE_RESIDENT_SNAPSHOTS_H_
#define FORKD_ENGINE_RESIDENT_SNAPSHOTS_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/async.h"
#include "base/async_mutex.h"
#include "base/blocking_pool.h"
#include "base/deadline.h"
#include "base/ids.h"
#include "base/page_set.h"
#include "engine/admission.h"
#include "engine/images.h"
#include "guest/ttrpc/sync.h"
#include "snapshot/store.h"
#include "vmm/vmm.h"

namespace forkd::engine {

// The memory of a root. Counted once, however many children map it.
struct ResidentRoot {
  explicit ResidentRoot(SnapshotTag t) : tag(std::move(t)) {}
  SnapshotTag tag;
  std::shared_ptr<const vmm::RootImage> image;
  MemoryReservation reservation;
};

struct ResidentSnapshot {
  snapshot::Manifest manifest;
  std::shared_ptr<ResidentRoot> root;
  std::shared_ptr<const std::string> device_state;
  std::shared_ptr<const PageSet> pages;  // null for a root
  MemoryReservation pages_reservation;
  ttrpc::SyncToken sync_token;
  vmm::MachineShape shape;
};

// I/O thread only.
class ResidentSnapshots {
 public:
  // Borrows all; they outlive it. `folder`: where `store` keeps its snapshots.
  ResidentSnapshots(Executor executor, BlockingPool* pool, snapshot::SnapshotStore* store, std::string folder, vmm::VmDriver* driver,
                    Admission* admission);

  // The snapshot, loaded if need be. NOT_FOUND SNAPSHOT_UNKNOWN; FAILED_PRECONDITION SNAPSHOT_DAMAGED (a file is missing, truncated or altered,
  // also since it was loaded) or SNAPSHOT_INCOMPATIBLE (another VMM, machine, accelerator or CPU); RESOURCE_EXHAUSTED MEMORY_EXHAUSTED.
  Task<absl::StatusOr<std::shared_ptr<const ResidentSnapshot>>> Get(SnapshotTag tag, Deadline deadline);
  // What was just made is resident already.
  void Put(SnapshotTag tag, std::shared_ptr<const ResidentSnapshot> snapshot);
  void Forget(const SnapshotTag& tag);
  // Drops everything that no sandbox uses. True if something was dropped.
  bool DropIdle();

 private:
  struct Entry {
    std::shared_ptr<const ResidentSnapshot> snapshot;
    std::string signature;  // of the files on disk, when they were last verified
  };
  std::string FolderOf(const SnapshotTag& tag) const { return folder_ + "/" + tag.str(); }
  Task<absl::StatusOr<std::shared_ptr<const ResidentSnapshot>>> Load(SnapshotTag tag);
  Task<absl::StatusOr<std::shared_ptr<ResidentRoot>>> LoadRoot(SnapshotTag tag);
  absl::StatusOr<MemoryReservation> ReserveOrDropIdle(int64_t mib, std::string what);

  BlockingPool* const pool_;
  snapshot::SnapshotStore* const store_;
  const std::string folder_;
  vmm::VmDriver* const driver_;
  Admission* const admission_;
  AsyncMutex loading_;  // One load at a time: a second one of the same root would fill the memory twice.
  std::map<SnapshotTag, Entry> entries_;
  std::map<SnapshotTag, std::weak_ptr<ResidentRoot>> roots_;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_RESIDENT_SNAPSHOTS_H_
