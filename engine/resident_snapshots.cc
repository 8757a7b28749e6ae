#include "engine/resident_snapshots.h"

#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/file_signature.h"

namespace forkd::engine {
namespace {

constexpr int64_t kMib = 1024 * 1024;

int64_t RoundUpToMib(int64_t bytes) { return (bytes + kMib - 1) / kMib; }

// What the host must be like for this snapshot, compared with what it is.
absl::Status CheckMachine(const snapshot::Manifest& manifest, const vmm::VmDriver& driver) {
  const std::map<std::string, std::string> fields(manifest.machine().begin(), manifest.machine().end());
  absl::StatusOr<vmm::MachineRecord> made = vmm::MachineRecord::FromMap(fields);
  std::string difference;
  if (!made.ok()) {
    difference = std::string(made.status().message());
  } else {
    const vmm::MachineShape shape{manifest.shape().vcpus(), manifest.shape().memory_mib()};
    difference = vmm::MachineDifference(*made, driver.RecordFor(shape, !manifest.rootfs().path().empty()));
  }
  if (difference.empty()) { return absl::OkStatus(); }
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotIncompatible,
               absl::StrCat("snapshot ", Quoted(manifest.tag()), " cannot be restored here: ", difference, "; re-create it on this host"))
      .Meta("tag", manifest.tag())
      .Meta("difference", difference);
}

}  // namespace

ResidentSnapshots::ResidentSnapshots(Executor executor, BlockingPool* pool, snapshot::SnapshotStore* store,
                                     std::string folder, vmm::VmDriver* driver, Admission* admission)
    : pool_(pool), store_(store), folder_(std::move(folder)), driver_(driver), admission_(admission), loading_(std::move(executor)) {}

absl::StatusOr<MemoryReservation> ResidentSnapshots::ReserveOrDropIdle(int64_t mib, std::string what) {
  absl::StatusOr<MemoryReservation> reservation = admission_->Reserve(mib, what);
  if (!reservation.ok() && DropIdle()) { reservation = admission_->Reserve(mib, what); }
  return reservation;
}

Task<absl::StatusOr<std::shared_ptr<const ResidentSnapshot>>> ResidentSnapshots::Get(SnapshotTag tag, Deadline deadline) {
  // Every fork looks at the files again, cheaply: what has changed on disk is not forked from memory as if nothing had happened.
  auto sign = [folder = FolderOf(tag)] { return FolderSignatureBlocking(folder); };
  absl::StatusOr<std::string> signature = co_await pool_->Run(std::move(sign));
  if (const auto it = entries_.find(tag); it != entries_.end()) {
    if (signature.ok() && *signature == it->second.signature) { co_return it->second.snapshot; }
    entries_.erase(it);
  }
  std::optional<AsyncMutex::Guard> guard = co_await loading_.Acquire(deadline);
  if (!guard.has_value()) {
    co_return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, absl::StrCat("snapshot ", Quoted(tag.str()), " was not loaded in time"));
  }
  if (const auto it = entries_.find(tag); it != entries_.end()) { co_return it->second.snapshot; }
  co_return co_await Load(tag);
}

Task<absl::StatusOr<std::shared_ptr<ResidentRoot>>> ResidentSnapshots::LoadRoot(SnapshotTag tag) {
  if (std::shared_ptr<ResidentRoot> root = roots_[tag].lock()) { co_return root; }
  auto load = [this, tag] { return store_->LoadBlocking(tag, snapshot::MemoryCheck::kWhenCopied); };
  absl::StatusOr<snapshot::LoadedSnapshot> loaded = co_await pool_->Run(std::move(load));
  if (!loaded.ok()) { co_return loaded.status(); }
  auto root = std::make_shared<ResidentRoot>(tag);
  FORKD_CO_ASSIGN_OR_RETURN(root->reservation, ReserveOrDropIdle(RoundUpToMib(loaded->manifest.memory_bytes()),
                                                                 absl::StrCat("the memory of snapshot ", Quoted(tag.str()))));
  auto fill = [this, &loaded, &tag]() -> absl::StatusOr<std::shared_ptr<const vmm::RootImage>> {
    FORKD_ASSIGN_OR_RETURN(vmm::RootImage image, vmm::RootImage::CreateBlocking(tag.str(), loaded->manifest.memory_bytes()));
    FORKD_RETURN_IF_ERROR(store_->CopyMemoryToBlocking(*loaded, image.fd()));
    FORKD_RETURN_IF_ERROR(image.SealBlocking());
    return std::make_shared<const vmm::RootImage>(std::move(image));
  };
  absl::StatusOr<std::shared_ptr<const vmm::RootImage>> image = co_await pool_->Run(std::move(fill));
  if (!image.ok()) { co_return image.status(); }
  root->image = *std::move(image);
  roots_[tag] = root;
  co_return root;
}

Task<absl::StatusOr<std::shared_ptr<const ResidentSnapshot>>> ResidentSnapshots::Load(SnapshotTag tag) {
  auto sign = [folder = FolderOf(tag)] { return FolderSignatureBlocking(folder); };
  absl::StatusOr<std::string> signature = co_await pool_->Run(std::move(sign));
  if (!signature.ok()) { co_return signature.status(); }
  // A root whose memory is alive, because a sandbox or a branch holds it, is not copied and would not be read: then it is checked here.
  const auto alive = roots_.find(tag);
  const bool copied = alive == roots_.end() || alive->second.expired();
  auto load = [this, tag, copied] {
    return store_->LoadBlocking(tag, copied ? snapshot::MemoryCheck::kWhenCopied : snapshot::MemoryCheck::kNow);
  };
  absl::StatusOr<snapshot::LoadedSnapshot> loaded = co_await pool_->Run(std::move(load));
  if (!loaded.ok()) { co_return loaded.status(); }
  FORKD_CO_RETURN_IF_ERROR(CheckMachine(loaded->manifest, *driver_));
  auto resident = std::make_shared<ResidentSnapshot>();
  const std::optional<ttrpc::SyncToken> token = ttrpc::SyncToken::FromHex(loaded->manifest.sync_token());
  absl::StatusOr<SnapshotTag> root_tag = SnapshotTag::Parse(loaded->manifest.root_tag());
  if (!token.has_value() || !root_tag.ok()) {
    co_return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotDamaged,
                    absl::StrCat("snapshot ", Quoted(tag.str()), ": manifest.json has no usable sync_token or root_tag; delete and re-create it"));
  }
  absl::StatusOr<std::shared_ptr<ResidentRoot>> root = co_await LoadRoot(*root_tag);
  if (!root.ok()) { co_return root.status(); }
  resident->root = *std::move(root);
  resident->device_state = loaded->device_state;
  resident->pages = loaded->pages;
  resident->sync_token = *token;
  resident->shape = vmm::MachineShape{loaded->manifest.shape().vcpus(), loaded->manifest.shape().memory_mib()};
  if (resident->pages != nullptr) {
    FORKD_CO_ASSIGN_OR_RETURN(resident->pages_reservation, ReserveOrDropIdle(RoundUpToMib(resident->pages->size_bytes()),
                                                                             absl::StrCat("the pages of branch ", Quoted(tag.str()))));
  }
  resident->manifest = std::move(loaded->manifest);
  std::shared_ptr<const ResidentSnapshot> done = std::move(resident);
  entries_[tag] = Entry{done, *std::move(signature)};
  co_return done;
}

void ResidentSnapshots::Put(SnapshotTag tag, std::shared_ptr<const ResidentSnapshot> snapshot) {
  roots_[snapshot->root->tag] = snapshot->root;
  absl::StatusOr<std::string> signature = FolderSignatureBlocking(FolderOf(tag));
  entries_[tag] = Entry{std::move(snapshot), signature.ok() ? *std::move(signature) : std::string()};
}

void ResidentSnapshots::Forget(const SnapshotTag& tag) { entries_.erase(tag); }

bool ResidentSnapshots::DropIdle() {
  const auto before = entries_.size();
  // A sandbox holds its ResidentSnapshot: one that only this map holds is idle.
  std::erase_if(entries_, [](const auto& entry) { return entry.second.snapshot.use_count() == 1; });
  return entries_.size() != before;
}

}  // namespace forkd::engine
