// Branch: a snapshot of a running sandbox, which goes on. The pause is stop, device state, scan and copy of the diverged pages, resume; what
// must reach the disk is written after the resume.
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {

Task<absl::StatusOr<SnapshotView>> Engine::Branch(BranchSpec spec, Deadline deadline) {
  if (shutting_down_) { co_return Error(absl::StatusCode::kUnavailable, Reason::kShuttingDown, "the daemon is stopping"); }
  // In the order of the REST contract: the tag first, then the source.
  if (snapshots_.contains(spec.tag)) {
    co_return Error(absl::StatusCode::kAlreadyExists, Reason::kTagTaken, absl::StrCat("snapshot ", spec.tag.str(), " already exists; DELETE first"))
        .Meta("tag", spec.tag.str())
        .Resource("snapshot", spec.tag.str());
  }
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxPtr sandbox, Find(spec.source));
  const auto parent = snapshots_.find(sandbox->view.row.snapshot_tag);
  SnapshotRow row(spec.tag, sandbox->view.row.root_tag);
  row.kind = SnapshotKind::kBranch;
  row.parent_tag = sandbox->view.row.snapshot_tag;
  row.branched_from = sandbox->id();
  row.created_at_unix = NowUnix();
  row.depth = parent == snapshots_.end() ? 1 : parent->second.row.depth + 1;
  row.memory_mib = sandbox->view.row.memory_mib;
  row.memory_bytes = row.memory_mib * 1024 * 1024;
  row.vcpus = sandbox->view.row.vcpus;
  row.image = sandbox->view.image;
  row.captured = "memory that differs from its root, and device state";
  row.labels = spec.labels;
  row.request_id = spec.request_id;
  SnapshotView view(row);
  view.dir = SnapshotDirOf(spec.tag);
  snapshots_.emplace(spec.tag, view);
  auto insert = [registry = parts_.registry, row] { return registry->InsertSnapshotBlocking(row); };
  if (absl::Status inserted = co_await parts_.pool->Run(std::move(insert)); !inserted.ok()) {
    snapshots_.erase(spec.tag);
    co_return inserted;
  }
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->transition.Acquire(deadline);
  absl::StatusOr<SnapshotView> branched =
      guard.has_value() ? co_await BranchSteps(sandbox, spec, row, deadline)
                        : Error(absl::StatusCode::kAborted, Reason::kSandboxBusy,
                                absl::StrCat("another change of sandbox ", Quoted(spec.source.str()), " is still under way"));
  if (!branched.ok()) {
    if (sandbox->deleting) {
      branched = Error(absl::StatusCode::kAborted, Reason::kSandboxDeleted,
                       absl::StrCat("sandbox ", Quoted(spec.source.str()), " was deleted while it was branched"))
                     .Meta("id", spec.source.str());
    }
    spdlog::warn("branch not made sandbox={} tag={} request={} error=\"{}\"", spec.source.str(), spec.tag.str(), spec.request_id,
                 std::string(branched.status().message()));
    co_await DropSnapshot(spec.tag);
  }
  co_return branched;
}

Task<absl::StatusOr<SnapshotView>> Engine::BranchSteps(SandboxPtr sandbox, BranchSpec spec, SnapshotRow row, Deadline deadline) {
  const SandboxState before = sandbox->state();
  if (before != SandboxState::kRunning && before != SandboxState::kPaused) {
    co_return Error(absl::StatusCode::kFailedPrecondition, Reason::kSandboxNotRunning,
                    absl::StrCat("sandbox ", Quoted(sandbox->id().str()), " is ", SandboxStateName(before), ", not RUNNING or PAUSED"))
        .Meta("id", sandbox->id().str())
        .Meta("state", SandboxStateName(before));
  }
  // What the child needs beyond memory and devices is read before the pause.
  absl::StatusOr<std::shared_ptr<const ResidentSnapshot>> origin = sandbox->origin;
  if (*origin == nullptr) { origin = co_await resident_.Get(sandbox->view.row.snapshot_tag, deadline); }
  if (!origin.ok()) { co_return origin.status(); }

  SetState(*sandbox, SandboxState::kBranching);
  // Buffers are faulted in and mappings found while the guest still runs. What fails here fails again, with its reason, in the pause.
  static_cast<void>(co_await sandbox->vm->PrepareBranch(deadline));
  const auto stopped = std::chrono::steady_clock::now();
  absl::Status paused = co_await sandbox->vm->Pause(deadline);
  absl::StatusOr<std::string> state;
  absl::StatusOr<PageSet> pages;
  if (paused.ok()) { state = co_await sandbox->vm->SaveDeviceState(deadline); }
  if (state.ok()) { pages = co_await sandbox->vm->CollectDivergedPages(deadline); }
  absl::Status resumed;
  // The source goes on whatever became of the branch; its deadline is its own, so that a caller in a hurry cannot leave it stopped.
  if (before == SandboxState::kRunning) { resumed = co_await sandbox->vm->Resume(Deadline::In(std::chrono::seconds(30))); }
  const auto pause = std::chrono::steady_clock::now() - stopped;
  if (sandbox->state() == SandboxState::kBranching) { SetState(*sandbox, before); }
  FORKD_CO_RETURN_IF_ERROR(paused);
  if (!state.ok()) { co_return state.status(); }
  if (!pages.ok()) { co_return pages.status(); }
  FORKD_CO_RETURN_IF_ERROR(resumed);

  const std::int64_t pause_us = std::chrono::duration_cast<std::chrono::microseconds>(pause).count();
  snapshot::Manifest manifest = (*origin)->manifest;
  manifest.clear_files();
  manifest.clear_pages();
  manifest.clear_labels();
  manifest.clear_captured();
  manifest.set_created_at_unix(NowUnix());
  manifest.set_kind(snapshot::BRANCH);
  manifest.set_parent_tag(row.parent_tag->str());
  manifest.set_root_tag(row.root_tag.str());
  manifest.set_depth(row.depth);
  manifest.set_branched_from(sandbox->id().str());
  if ((*origin)->manifest.kind() == snapshot::ROOT) {
    const snapshot::File* memory = snapshot::FindFile((*origin)->manifest, snapshot::kMemoryName);
    if (memory == nullptr) { co_return Error(absl::StatusCode::kInternal, Reason::kInternal, "a root's manifest names no memory.bin"); }
    manifest.set_root_memory_digest(memory->digest());
  }
  for (const auto& [key, value] : spec.labels) { (*manifest.mutable_labels())[key] = value; }
  manifest.add_captured("memory that differs from the root's");
  manifest.add_captured("device-state");
  manifest.set_pause_ms(pause_us / 1000);

  const auto shared_pages = std::make_shared<const PageSet>(*std::move(pages));
  absl::StatusOr<MemoryReservation> pages_reservation =
      admission_.Reserve(shared_pages->size_bytes() / (1024 * 1024) + 1, absl::StrCat("the pages of branch ", Quoted(spec.tag.str())));
  auto publish = [this, &spec, &state, shared_pages, &manifest, &row]() -> absl::StatusOr<std::pair<snapshot::Manifest, snapshot::SnapshotSizes>> {
    FORKD_ASSIGN_OR_RETURN(snapshot::StagedSnapshot staged, parts_.store->BeginBlocking(spec.tag));
    FORKD_RETURN_IF_ERROR(staged.WriteDeviceStateBlocking(*state));
    FORKD_RETURN_IF_ERROR(staged.WritePagesBlocking(*shared_pages, static_cast<std::uint64_t>(row.memory_bytes)));
    FORKD_ASSIGN_OR_RETURN(snapshot::Manifest written, staged.PublishBlocking(std::move(manifest)));
    FORKD_ASSIGN_OR_RETURN(const snapshot::SnapshotSizes sizes, parts_.store->SizesBlocking(spec.tag));
    return std::make_pair(std::move(written), sizes);
  };
  absl::StatusOr<std::pair<snapshot::Manifest, snapshot::SnapshotSizes>> published = co_await parts_.pool->Run(std::move(publish));
  if (!published.ok()) { co_return published.status(); }

  SnapshotView view = snapshots_.at(spec.tag);
  view.row.status = SnapshotStatus::kReady;
  view.row.pause_ms = pause_us / 1000;
  view.row.page_count = shared_pages->page_count();
  view.row.physical_bytes = published->second.total_physical_bytes;
  const auto& machine = published->first.machine();
  view.vmm = machine.at("vmm");
  view.vmm_version = machine.at("vmm_version");
  view.accelerator = machine.at("accelerator");
  view.image_hash = published->first.image().hash();
  view.agent_version = published->first.agent_version();
  view.device_state_bytes = static_cast<std::int64_t>(state->size());
  view.pause_us = pause_us;
  std::optional<IdempotentResult> reply;
  if (spec.remember) { reply = spec.remember(view); }
  auto mark = [registry = parts_.registry, ready = view.row, reply = std::move(reply)] { return registry->MarkSnapshotReadyBlocking(ready, reply); };
  FORKD_CO_RETURN_IF_ERROR(co_await parts_.pool->Run(std::move(mark)));
  snapshots_.at(spec.tag) = view;

  // Where memory is short the next fork reads the pages from disk instead.
  if (pages_reservation.ok()) {
    auto resident = std::make_shared<ResidentSnapshot>();
    resident->root = (*origin)->root;
    resident->manifest = std::move(published->first);
    resident->device_state = std::make_shared<const std::string>(*std::move(state));
    resident->pages = shared_pages;
    resident->pages_reservation = *std::move(pages_reservation);
    resident->sync_token = (*origin)->sync_token;
    resident->shape = (*origin)->shape;
    resident_.Put(spec.tag, std::move(resident));
  }
  ++sandbox->view.row.branch_count;
  Announce(SandboxEventKind::kChanged, *sandbox);
  static_cast<void>(co_await Persist(sandbox));  // Logged there; the branch itself is safe.
  spdlog::info("branched sandbox={} tag={} pause_us={} pages={} stored_bytes={} request={}", sandbox->id().str(), spec.tag.str(), pause_us,
               view.row.page_count, view.row.physical_bytes, spec.request_id);
  co_return view;
}

}  // namespace forkd::engine
