// What a daemon does before it serves: take up the sandboxes that an earlier one left running, and clean what it left half done.
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "base/task_group.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

constexpr std::chrono::seconds kAdoptDeadline{15};
constexpr std::size_t kAdoptWindow = 8;

// The row that a snapshot's manifest describes.
absl::StatusOr<SnapshotRow> RowOf(const SnapshotTag& tag, const snapshot::Manifest& manifest) {
  FORKD_ASSIGN_OR_RETURN(SnapshotTag root, SnapshotTag::Parse(manifest.root_tag(), "root_tag"));
  SnapshotRow row(tag, std::move(root));
  row.kind = manifest.kind() == snapshot::BRANCH ? SnapshotKind::kBranch : SnapshotKind::kRoot;
  if (row.kind == SnapshotKind::kBranch) {
    FORKD_ASSIGN_OR_RETURN(row.parent_tag, SnapshotTag::Parse(manifest.parent_tag(), "parent_tag"));
    FORKD_ASSIGN_OR_RETURN(row.branched_from, SandboxId::Parse(manifest.branched_from(), "branched_from"));
  }
  row.created_at_unix = manifest.created_at_unix();
  row.depth = manifest.depth();
  row.pause_ms = manifest.pause_ms();
  row.memory_bytes = manifest.memory_bytes();
  row.page_count = manifest.pages().page_count();
  row.memory_mib = manifest.shape().memory_mib();
  row.vcpus = manifest.shape().vcpus();
  row.image = manifest.image().name();
  row.labels = Labels(manifest.labels().begin(), manifest.labels().end());
  return row;
}

absl::Status TakeInSnapshots(Registry& registry, snapshot::SnapshotStore& store, const std::map<SnapshotTag, snapshot::Manifest>& manifests,
                             std::vector<SnapshotRow>& rows) {
  for (const snapshot::Kind kind : {snapshot::ROOT, snapshot::BRANCH}) {
    for (const auto& [tag, manifest] : manifests) {
      if (manifest.kind() != kind) { continue; }
      absl::StatusOr<SnapshotRow> row = RowOf(tag, manifest);
      const absl::Status inserted = row.ok() ? registry.InsertSnapshotBlocking(*row) : row.status();
      if (!inserted.ok()) {
        spdlog::error("snapshot not taken in tag={} error=\"{}\"", tag.str(), std::string(inserted.message()));
        continue;
      }
      if (const absl::StatusOr<snapshot::SnapshotSizes> sizes = store.SizesBlocking(tag); sizes.ok()) { row->physical_bytes = sizes->total_physical_bytes; }
      row->status = SnapshotStatus::kReady;
      FORKD_RETURN_IF_ERROR(registry.MarkSnapshotReadyBlocking(*row, std::nullopt));
      spdlog::info("taken in snapshot={} kind={}", tag.str(), std::string(SnapshotKindName(row->kind)));
      rows.push_back(*row);
    }
  }
  return absl::OkStatus();
}

}  // namespace

Task<absl::Status> Engine::Recover() {
  struct Found {
    std::vector<SnapshotRow> snapshots;
    std::vector<SandboxRow> sandboxes;
    std::map<SnapshotTag, snapshot::Manifest> manifests;
  };
  auto read = [this]() -> absl::StatusOr<Found> {
    Found found;
    FORKD_ASSIGN_OR_RETURN(const int swept, parts_.store->SweepStagingBlocking());
    FORKD_ASSIGN_OR_RETURN(const int keys, parts_.registry->AbandonAllIdempotentBlocking());
    FORKD_RETURN_IF_ERROR(parts_.registry->SweepIdempotencyBlocking(NowUnix()).status());
    if (swept > 0 || keys > 0) { spdlog::info("recovered staging_folders={} unfinished_calls={}", swept, keys); }
    FORKD_ASSIGN_OR_RETURN(found.snapshots, parts_.registry->ListSnapshotsBlocking());
    FORKD_ASSIGN_OR_RETURN(found.sandboxes, parts_.registry->ListSandboxesBlocking());
    std::set<SnapshotTag> known;
    for (const SnapshotRow& row : found.snapshots) {
      known.insert(row.tag);
      if (row.status != SnapshotStatus::kReady) { continue; }
      if (absl::StatusOr<snapshot::Manifest> manifest = parts_.store->ReadManifestBlocking(row.tag); manifest.ok()) {
        found.manifests.emplace(row.tag, *std::move(manifest));
      }
    }
    FORKD_ASSIGN_OR_RETURN(const std::vector<SnapshotTag> on_disk, parts_.store->ListBlocking());
    for (const SnapshotTag& tag : on_disk) {
      if (known.contains(tag)) { continue; }
      if (parts_.registry->created()) {
        // The registry is new and the snapshots are not: it was lost, or moved. What can be read is taken in, roots first (below).
        if (absl::StatusOr<snapshot::Manifest> manifest = parts_.store->ReadManifestBlocking(tag); manifest.ok()) {
          found.manifests.emplace(tag, *std::move(manifest));
        } else {
          spdlog::error("snapshot not taken in tag={} error=\"{}\"", tag.str(), std::string(manifest.status().message()));
        }
        continue;
      }
      // A published folder without a row: its row was deleted, and then the daemon was killed.
      spdlog::info("recovered: removing the folder of deleted snapshot={}", tag.str());
      FORKD_RETURN_IF_ERROR(parts_.store->DeleteBlocking(tag));
    }
    if (parts_.registry->created()) { FORKD_RETURN_IF_ERROR(TakeInSnapshots(*parts_.registry, *parts_.store, found.manifests, found.snapshots)); }
    return found;
  };
  absl::StatusOr<Found> found = co_await parts_.pool->Run(std::move(read));
  if (!found.ok()) { co_return found.status(); }

  for (const SnapshotRow& row : found->snapshots) {
    SnapshotView view(row);
    view.dir = SnapshotDirOf(row.tag);
    snapshots_.emplace(row.tag, view);
    if (row.status == SnapshotStatus::kWriting) {
      // Nobody was told that it exists: it never did.
      spdlog::info("recovered: removing unfinished snapshot={} request={}", row.tag.str(), row.request_id);
      co_await DropSnapshot(row.tag);
      continue;
    }
    if (const auto it = found->manifests.find(row.tag); it != found->manifests.end()) {
      SnapshotView& stored = snapshots_.at(row.tag);
      const snapshot::Manifest& manifest = it->second;
      const auto field = [&manifest](const char* key) { return manifest.machine().contains(key) ? manifest.machine().at(key) : std::string(); };
      stored.vmm = field("vmm");
      stored.vmm_version = field("vmm_version");
      stored.accelerator = field("accelerator");
      stored.image_hash = manifest.image().hash();
      stored.agent_version = manifest.agent_version();
      if (const snapshot::File* state = snapshot::FindFile(manifest, snapshot::kDeviceStateName)) { stored.device_state_bytes = state->size_bytes(); }
    }
  }

  FailOrphans();

  std::vector<SandboxPtr> adoptable;
  std::vector<SandboxPtr> unfinished;
  for (SandboxRow& row : found->sandboxes) {
    auto sandbox = std::make_shared<Sandbox>(std::move(row), parts_.runtime->executor());
    const SandboxState state = sandbox->state();
    if (const auto it = found->manifests.find(sandbox->view.row.snapshot_tag); it != found->manifests.end()) {
      if (const auto token = ttrpc::SyncToken::FromHex(it->second.sync_token())) { sandbox->sync_token = *token; }
      sandbox->view.image = it->second.image().name();
    }
    sandbox->view.last_used_at_unix = NowUnix();
    sandboxes_[sandbox->id()] = sandbox;
    if (state == SandboxState::kRunning || state == SandboxState::kPaused || state == SandboxState::kBranching) {
      sandbox->reservation =
          admission_.Account(SandboxEstimateMib(sandbox->view.row.memory_mib, sandbox->view.row.memory_limit_mib.value_or(0)));
      adoptable.push_back(sandbox);
    } else if (state != SandboxState::kFailed) {
      unfinished.push_back(sandbox);
    }
  }
  auto adopt = [this, &adoptable](std::size_t i) { return Adopt(adoptable[i]); };
  co_await RunWindowed(adoptable.size(), kAdoptWindow, adopt);

  // Processes of ours that no row accounts for: parents of unfinished snapshots, children that were never handed over.
  std::set<pid_t> kept;
  for (const auto& [id, sandbox] : sandboxes_) {
    if (sandbox->vm != nullptr) { kept.insert(sandbox->vm->process().pid); }
  }
  auto reap = [this, kept] { return parts_.driver->KillStraysBlocking(absl::StrCat(options_.state_dir, "/run/"), kept); };
  const int strays = co_await parts_.pool->Run(std::move(reap));
  if (strays > 0) { spdlog::info("recovered: ended {} VMMs that belonged to nobody", strays); }

  for (const SandboxPtr& sandbox : unfinished) {
    spdlog::info("recovered: removing unfinished sandbox={} request={}", sandbox->id().str(), sandbox->view.row.request_id);
    static_cast<void>(co_await DeleteSandbox(sandbox->id()));
  }
  std::set<std::string> run_dirs;
  for (const auto& [id, sandbox] : sandboxes_) { run_dirs.insert(sandbox->view.row.run_dir); }
  auto sweep = [root = absl::StrCat(options_.state_dir, "/run"), run_dirs] {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(root, error)) {
      if (!run_dirs.contains(entry.path())) { std::filesystem::remove_all(entry.path(), error); }
    }
  };
  co_await parts_.pool->Run(std::move(sweep));
  co_await SweepCgroups();
  parts_.runtime->Spawn(ExpireLoop());
  parts_.runtime->Spawn(standby_.RefillLoop());
  co_return absl::OkStatus();
}

Task<void> Engine::Adopt(SandboxPtr sandbox) {
  const Deadline deadline = Deadline::In(kAdoptDeadline);
  SandboxRow& row = sandbox->view.row;
  const SandboxState was = row.state;
  vmm::AdoptSpec spec;
  spec.id = row.id.str();
  spec.process.pid = static_cast<pid_t>(row.pid);
  spec.process.start_time_ticks = row.start_time;
  spec.run_dir = row.run_dir;
  absl::StatusOr<std::unique_ptr<vmm::Vm>> vm = co_await parts_.driver->Adopt(std::move(spec), deadline);
  if (!vm.ok()) {
    co_await HandleExit(sandbox, "VMM_FAILED",
                        absl::IsNotFound(vm.status()) ? "its VMM ended while no daemon ran"
                                                      : absl::StrCat("its VMM could not be taken up again: ", vm.status().message()));
    co_return;
  }
  sandbox->vm = *std::move(vm);
  WatchExit(sandbox);
  absl::StatusOr<vmm::VmStatus> status = co_await sandbox->vm->QueryStatus(deadline);
  if (status.ok() && *status == vmm::VmStatus::kPaused && was != SandboxState::kPaused) {
    // The daemon was killed inside a pause (a branch): the source goes on.
    if (const absl::Status resumed = co_await sandbox->vm->Resume(deadline); !resumed.ok()) { status = resumed; }
    if (status.ok()) { status = vmm::VmStatus::kRunning; }
  }
  if (!status.ok() || *status == vmm::VmStatus::kFailed) {
    co_await HandleExit(sandbox, "VMM_FAILED", status.ok() ? std::string("its VMM has stopped for good") : std::string(status.status().message()));
    co_return;
  }
  SetState(*sandbox, *status == vmm::VmStatus::kPaused ? SandboxState::kPaused : SandboxState::kRunning);
  static_cast<void>(co_await Persist(sandbox));
  spdlog::info("adopted sandbox={} pid={} state={}", sandbox->id().str(), row.pid, std::string(SandboxStateName(sandbox->state())));
  // The agent is connected by the first call that needs it.
}

}  // namespace forkd::engine
