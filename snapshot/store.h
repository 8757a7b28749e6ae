// Snapshots on disk: staged, published by rename after fsync, verified when opened. The format is docs/snapshot-format.md. Everything is reached
// from the state folder's descriptor (base/beneath.h). All calls block: use them on a BlockingPool. Every class here may be used on any thread;
// SnapshotStore by several at once.
#ifndef FORKD_SNAPSHOT_STORE_H_
#define FORKD_SNAPSHOT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/ids.h"
#include "base/page_set.h"
#include "base/unique_fd.h"
#include "snapshot/manifest.h"

namespace forkd::snapshot {

// A snapshot being written: a hidden folder that becomes visible by PublishBlocking alone. The destructor removes what was not published.
// Errors of all writes: RESOURCE_EXHAUSTED DISK_FULL; else as ErrnoError.
class StagedSnapshot {
 public:
  ~StagedSnapshot();
  StagedSnapshot(StagedSnapshot&&) noexcept;
  StagedSnapshot& operator=(StagedSnapshot&&) = delete;

  // device.state. Once.
  absl::Status WriteDeviceStateBlocking(absl::string_view bytes);

  // memory.bin (roots), by one of two ways, once. From a memfd or file of which the first `bytes` are the RAM: sparse, hashed on the way. `source`
  // must not change meanwhile (VMM stopped or sealed).
  absl::Status WriteMemoryBlocking(int source, std::uint64_t bytes);
  // Or filled by the caller (a VMM): the descriptor is borrowed, the file all zero and `bytes` long; FinishMemoryBlocking hashes it.
  absl::StatusOr<int> CreateMemoryFileBlocking(std::uint64_t bytes);
  absl::Status FinishMemoryBlocking();

  // pages.bin (branches). Once. `root_bytes`: size of the root's memory.bin. INVALID_ARGUMENT if a page lies beyond it.
  absl::Status WritePagesBlocking(const PageSet& pages, std::uint64_t root_bytes);

  // Fills in what this object knows (format_version, tag, files, page counts, memory_bytes), checks the rest, writes the manifest, syncs and
  // renames. Returns the manifest as it was written. INVALID_ARGUMENT INVALID_FIELD: a field of `manifest` is missing or wrong, or the files do
  // not fit its kind. ALREADY_EXISTS TAG_TAKEN. After an error nothing is visible; the destructor removes the rest. Once.
  absl::StatusOr<Manifest> PublishBlocking(Manifest manifest);

 private:
  friend class SnapshotStore;
  struct Impl;
  explicit StagedSnapshot(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A published snapshot whose files have been checked.
struct LoadedSnapshot {
  Manifest manifest;
  std::shared_ptr<const std::string> device_state;
  // Branches: their pages over the root's image. Null for roots.
  std::shared_ptr<const PageSet> pages;
  // Roots: memory.bin, open read-only. Invalid for branches.
  UniqueFd memory;
};

enum class MemoryCheck {
  kNow,       // OpenBlocking reads and hashes memory.bin
  kWhenCopied,  // the caller uses CopyMemoryToBlocking, which hashes the very bytes it hands over
};

// Bytes on disk. Physical sizes are allocated blocks (st_blocks × 512).
struct SnapshotSizes {
  std::int64_t memory_logical_bytes = 0;   // memory.bin's size; for a branch its root's
  std::int64_t memory_physical_bytes = 0;  // of memory.bin or pages.bin
  std::int64_t device_state_bytes = 0;
  std::int64_t total_physical_bytes = 0;   // of every file in the folder
};

class SnapshotStore {
 public:
  // Makes `snapshots` (0700) below the state folder if it is absent. The descriptor is borrowed for the call alone.
  static absl::StatusOr<std::unique_ptr<SnapshotStore>> OpenBlocking(int state_dir_fd);
  // The same for a folder that holds the snapshots themselves (`--snapshot-root`); it must exist.
  static absl::StatusOr<std::unique_ptr<SnapshotStore>> OpenFolderBlocking(int folder_fd);
  ~SnapshotStore();

  // Begins a snapshot. ALREADY_EXISTS TAG_TAKEN if one of that tag is published (checked again at publication). Two may be staged for one tag;
  // the first to be published wins.
  absl::StatusOr<StagedSnapshot> BeginBlocking(const SnapshotTag& tag);

  // Opens and checks: manifest against its digest, every file's presence, size and content, a branch's root being the one it was made of.
  // NOT_FOUND SNAPSHOT_UNKNOWN: no such folder. FAILED_PRECONDITION SNAPSHOT_DAMAGED: names the snapshot and the file (metadata `tag`, `file`);
  // SNAPSHOT_INCOMPATIBLE: another format version.
  absl::StatusOr<LoadedSnapshot> LoadBlocking(const SnapshotTag& tag, MemoryCheck check);
  // Copies a root's memory into `to` (an empty memfd), zero blocks as holes, and compares the digest of what was copied with the manifest.
  // FAILED_PRECONDITION SNAPSHOT_DAMAGED: `to` must not be used.
  absl::Status CopyMemoryToBlocking(const LoadedSnapshot& root, int to);
  // The manifest alone, checked against its digest. Errors as LoadBlocking.
  absl::StatusOr<Manifest> ReadManifestBlocking(const SnapshotTag& tag);
  // Reads and checks every byte. Errors as LoadBlocking.
  absl::Status VerifyBlocking(const SnapshotTag& tag);

  // Errors: NOT_FOUND SNAPSHOT_UNKNOWN.
  absl::StatusOr<SnapshotSizes> SizesBlocking(const SnapshotTag& tag);
  // Tags of published folders, sorted. Folders whose name is no tag are not ours and left out.
  absl::StatusOr<std::vector<SnapshotTag>> ListBlocking();

  // Makes the snapshot invisible by one rename, then removes it. OK if there is none. The caller has checked for dependents. Fault points:
  // snapshot.delete.before_rename, snapshot.delete.after_rename.
  absl::Status DeleteBlocking(const SnapshotTag& tag);

  // Removes what a killed daemon left half written or half deleted; returns how many folders. Only while nothing is staged: at start.
  absl::StatusOr<int> SweepStagingBlocking();

 private:
  struct Impl;
  explicit SnapshotStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_STORE_H_
