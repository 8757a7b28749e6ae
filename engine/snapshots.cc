// Listing, describing and deleting snapshots.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

absl::Status Unknown(const SnapshotTag& tag) {
  return Error(absl::StatusCode::kNotFound, Reason::kSnapshotUnknown, absl::StrCat("snapshot ", tag.str(), " not found"))
      .Meta("tag", tag.str())
      .Resource("snapshot", tag.str());
}

}  // namespace

std::vector<SnapshotView> Engine::ListSnapshots() const {
  std::vector<SnapshotView> views;
  views.reserve(snapshots_.size());
  for (const auto& [tag, view] : snapshots_) {
    views.push_back(view);
    views.back().standby = standby_.LevelsOf(tag);
  }
  return views;
}

absl::StatusOr<SnapshotView> Engine::GetSnapshot(const SnapshotTag& tag) const {
  const auto it = snapshots_.find(tag);
  if (it == snapshots_.end()) { return Unknown(tag); }
  SnapshotView view = it->second;
  view.standby = standby_.LevelsOf(tag);
  return view;
}

Task<absl::StatusOr<Engine::SnapshotDetail>> Engine::DescribeSnapshot(SnapshotTag tag) {
  const auto it = snapshots_.find(tag);
  if (it == snapshots_.end()) { co_return Unknown(tag); }
  SnapshotDetail detail(it->second);
  if (it->second.row.status != SnapshotStatus::kReady) { co_return detail; }
  auto read = [this, tag, detail = std::move(detail)]() mutable -> absl::StatusOr<SnapshotDetail> {
    FORKD_ASSIGN_OR_RETURN(detail.manifest, parts_.store->ReadManifestBlocking(tag));
    FORKD_ASSIGN_OR_RETURN(detail.sizes, parts_.store->SizesBlocking(tag));
    FORKD_ASSIGN_OR_RETURN(detail.dependents, parts_.registry->DependentsBlocking(tag));
    FORKD_ASSIGN_OR_RETURN(detail.ancestors, parts_.registry->LineageBlocking(tag));
    if (!detail.ancestors.empty()) { detail.ancestors.pop_back(); }
    return std::move(detail);
  };
  co_return co_await parts_.pool->Run(std::move(read));
}

// What a creation that failed leaves: nothing.
Task<void> Engine::DropSnapshot(SnapshotTag tag) {
  standby_.Forget(tag);
  resident_.Forget(tag);
  auto drop = [this, tag]() -> absl::Status {
    // The folder first: if we are killed in between, the row says that there is something to clean.
    FORKD_RETURN_IF_ERROR(parts_.store->DeleteBlocking(tag));
    return parts_.registry->DeleteSnapshotBlocking(tag, Registry::DependentsRule::kIgnore).status();
  };
  if (const absl::Status dropped = co_await parts_.pool->Run(std::move(drop)); !dropped.ok()) {
    spdlog::error("snapshot not removed tag={} error=\"{}\"", tag.str(), std::string(dropped.message()));
  }
  snapshots_.erase(tag);
}

// Branches whose root is gone cannot be forked again. Derived, not stored: the next daemon sees the same.
void Engine::FailOrphans() {
  for (auto& [tag, view] : snapshots_) {
    if (view.row.status != SnapshotStatus::kReady || snapshots_.contains(view.row.root_tag)) { continue; }
    view.row.status = SnapshotStatus::kFailed;
    view.row.warning = absl::StrCat("its root snapshot ", view.row.root_tag.str(), " was deleted");
    standby_.Forget(tag);
    resident_.Forget(tag);
  }
}

Task<absl::Status> Engine::DeleteSnapshot(SnapshotTag tag, DeleteMode mode) {
  const auto it = snapshots_.find(tag);
  if (it == snapshots_.end()) { co_return Unknown(tag); }
  if (it->second.row.status == SnapshotStatus::kWriting) {
    co_return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotNotReady,
                    absl::StrCat("snapshot ", Quoted(tag.str()), " is still being written: delete it when it is ready"))
        .Meta("tag", tag.str());
  }
  auto find = [this, tag] { return parts_.registry->DependentsBlocking(tag); };
  absl::StatusOr<Dependents> dependents = co_await parts_.pool->Run(std::move(find));
  if (!dependents.ok()) { co_return dependents.status(); }
  if (mode == DeleteMode::kCascade) {
    // Leaves first: a daemon killed in between leaves a smaller tree, never an orphan.
    for (const SandboxId& id : dependents->sandboxes) {
      if (const absl::Status deleted = co_await DeleteSandbox(id); !deleted.ok() && !absl::IsNotFound(deleted)) { co_return deleted; }
    }
    std::vector<SnapshotTag> below = dependents->descendants;
    below.insert(below.end(), dependents->children.begin(), dependents->children.end());
    for (const SnapshotTag& child : below) {
      if (!snapshots_.contains(child)) { continue; }
      if (const absl::Status deleted = co_await DeleteSnapshot(child, mode); !deleted.ok() && !absl::IsNotFound(deleted)) { co_return deleted; }
    }
  }
  const Registry::DependentsRule rule = mode == DeleteMode::kForce ? Registry::DependentsRule::kIgnore : Registry::DependentsRule::kRefuse;
  // The row is removed in the transaction that checks for dependents; a folder without a row is swept at the next start.
  auto remove = [this, tag, rule]() -> absl::Status {
    FORKD_RETURN_IF_ERROR(parts_.registry->DeleteSnapshotBlocking(tag, rule).status());
    return parts_.store->DeleteBlocking(tag);
  };
  FORKD_CO_RETURN_IF_ERROR(co_await parts_.pool->Run(std::move(remove)));
  standby_.Forget(tag);
  resident_.Forget(tag);
  snapshots_.erase(tag);
  FailOrphans();
  spdlog::info("deleted snapshot={}", tag.str());
  co_return absl::OkStatus();
}

}  // namespace forkd::engine
