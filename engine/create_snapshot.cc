// A root snapshot: boot a microVM, warm it, stop it, keep its memory and device state.
#include <chrono>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

// Under emulation on a loaded machine a boot took 3.5 s and a NumPy warm-up 6 s; ten times that is a hang.
constexpr std::chrono::seconds kBootDeadline{120};
constexpr std::chrono::seconds kWarmupDeadline{300};
// What a VMM that has the kernel and initramfs loaded takes for itself.
constexpr int64_t kBootOverheadMib = 96;
constexpr std::size_t kMaxConsoleTail = 1024;

}  // namespace

// Everything that a build makes, so that one place can undo it.
struct Engine::RootBuild {
  explicit RootBuild(CreateSnapshotSpec s) : spec(std::move(s)) {}
  CreateSnapshotSpec spec;
  GuestImage image;
  std::string run_dir;
  MemoryReservation root_reservation;
  MemoryReservation boot_reservation;
  std::unique_ptr<vmm::Vm> vm;
  std::string exit_reason;  // why the VM ended by itself, if it did
};

Task<absl::StatusOr<SnapshotView>> Engine::CreateSnapshot(CreateSnapshotSpec spec, Deadline deadline) {
  if (shutting_down_) { co_return Error(absl::StatusCode::kUnavailable, Reason::kShuttingDown, "the daemon is stopping"); }
  auto build = std::make_shared<RootBuild>(std::move(spec));
  const CreateSnapshotSpec& wanted = build->spec;
  auto open = [images = parts_.images, &wanted] {
    return wanted.image.empty() ? images->OpenHostFilesBlocking(wanted.kernel, wanted.rootfs) : images->OpenBlocking(wanted.image);
  };
  absl::StatusOr<GuestImage> image = co_await parts_.pool->Run(std::move(open));
  if (!image.ok()) { co_return image.status(); }
  build->image = *std::move(image);
  if (wanted.shape.memory_mib < build->image.memory_mib) {
    co_return InvalidField("memory_mib", absl::StrCat("is ", wanted.shape.memory_mib, "; the image ", Quoted(wanted.image), " needs at least ",
                                                      build->image.memory_mib));
  }
  if (const int most = parts_.driver->capabilities().max_vcpus; wanted.shape.vcpus > most) {
    co_return InvalidField("vcpus", absl::StrCat("is ", wanted.shape.vcpus, "; this VMM takes at most ", most));
  }
  if (snapshots_.contains(wanted.tag)) {
    co_return Error(absl::StatusCode::kAlreadyExists, Reason::kTagTaken, absl::StrCat("snapshot ", wanted.tag.str(), " already exists; DELETE first"))
        .Meta("tag", wanted.tag.str())
        .Resource("snapshot", wanted.tag.str());
  }
  absl::StatusOr<MemoryReservation> root =
      ReserveOrEvict(wanted.shape.memory_mib, absl::StrCat("the microVM of snapshot ", Quoted(wanted.tag.str())));
  if (!root.ok()) { co_return root.status(); }
  build->root_reservation = *std::move(root);
  absl::StatusOr<MemoryReservation> boot = ReserveOrEvict(kBootOverheadMib, absl::StrCat("the VMM of snapshot ", Quoted(wanted.tag.str())));
  if (!boot.ok()) { co_return boot.status(); }
  build->boot_reservation = *std::move(boot);

  SnapshotRow row(wanted.tag, wanted.tag);
  row.kind = SnapshotKind::kRoot;
  row.created_at_unix = NowUnix();
  row.memory_bytes = wanted.shape.memory_mib * 1024 * 1024;
  row.memory_mib = wanted.shape.memory_mib;
  row.vcpus = wanted.shape.vcpus;
  row.image = wanted.image;
  row.captured = "memory and device state after boot and warm-up; root file system read-only and shared";
  row.labels = wanted.labels;
  row.request_id = wanted.request_id;
  SnapshotView view(row);
  view.dir = SnapshotDirOf(wanted.tag);
  // Visible at once, as `writing`: a second call with this tag is refused from here on.
  snapshots_.emplace(wanted.tag, view);
  auto insert = [registry = parts_.registry, row] { return registry->InsertSnapshotBlocking(row); };
  if (absl::Status inserted = co_await parts_.pool->Run(std::move(insert)); !inserted.ok()) {
    snapshots_.erase(wanted.tag);
    co_return inserted;
  }
  absl::StatusOr<SnapshotView> built = co_await BuildRoot(build, deadline);
  if (build->vm != nullptr) {
    if (!built.ok() && !build->exit_reason.empty()) { built = Annotate(built.status(), absl::StrCat("the microVM ended: ", build->exit_reason)); }
    if (const absl::Status killed = co_await build->vm->Kill(Deadline::In(std::chrono::seconds(10))); !killed.ok()) {
      spdlog::error("VMM not ended snapshot={} error=\"{}\"", wanted.tag.str(), std::string(killed.message()));
    }
  }
  co_await RemoveLeaf(build->run_dir);
  co_await RemoveRunDir(build->run_dir);
  if (!built.ok()) {
    spdlog::warn("snapshot not made tag={} request={} error=\"{}\"", wanted.tag.str(), wanted.request_id, std::string(built.status().message()));
    co_await DropSnapshot(wanted.tag);
  }
  co_return built;
}

Task<absl::StatusOr<SnapshotView>> Engine::BuildRoot(std::shared_ptr<RootBuild> build, Deadline deadline) {
  const CreateSnapshotSpec& spec = build->spec;
  const auto began = std::chrono::steady_clock::now();
  const ttrpc::SyncToken token = ttrpc::SyncToken::Random();
  auto allocate = [name = spec.tag.str(), bytes = spec.shape.memory_mib * 1024 * 1024]() -> absl::StatusOr<std::shared_ptr<vmm::RootImage>> {
    FORKD_ASSIGN_OR_RETURN(vmm::RootImage ram, vmm::RootImage::CreateBlocking(name, bytes));
    return std::make_shared<vmm::RootImage>(std::move(ram));
  };
  absl::StatusOr<std::shared_ptr<vmm::RootImage>> ram = co_await parts_.pool->Run(std::move(allocate));
  if (!ram.ok()) { co_return ram.status(); }

  vmm::BootSpec boot;
  // Not the tag, which may have upper case and be as long as a name may be.
  boot.id = absl::StrCat("boot-", absl::AsciiStrToLower(token.ToHex().substr(0, 16)));
  boot.shape = spec.shape;
  boot.kernel = std::move(build->image.kernel.fd);
  boot.initrd = std::move(build->image.initrd.fd);
  boot.rootfs = std::move(build->image.rootfs.fd);
  boot.kernel_args = absl::StrCat(build->image.kernel_args, " forkd.sync=", token.ToHex());
  boot.ram = *ram;
  build->run_dir = RunDirOf(boot.id);
  boot.run_dir = build->run_dir;
  FORKD_CO_RETURN_IF_ERROR(co_await MakeRunDir(build->run_dir));
  // The root's memory is charged here, and to the daemon's own group once the leaf is gone: never to the first child that touches it.
  absl::StatusOr<std::vector<UniqueFd>> cgroups = co_await MakeLeaf(build->run_dir, std::nullopt);
  if (!cgroups.ok()) { co_return cgroups.status(); }
  boot.cgroups = *std::move(cgroups);
  const Deadline boot_by = deadline.Within(kBootDeadline);
  absl::StatusOr<std::unique_ptr<vmm::Vm>> vm = co_await parts_.driver->Boot(std::move(boot), boot_by);
  if (!vm.ok()) { co_return vm.status(); }
  build->vm = *std::move(vm);
  build->vm->OnExit([build = std::weak_ptr<RootBuild>(build)](const vmm::VmExit& exit) {
    if (const std::shared_ptr<RootBuild> alive = build.lock(); alive != nullptr && exit.kind != vmm::VmExit::Kind::kKilled) {
      alive->exit_reason = exit.reason;
    }
  });
  absl::StatusOr<UniqueFd> socket = co_await build->vm->ConnectAgent(boot_by);
  if (!socket.ok()) { co_return socket.status(); }
  absl::StatusOr<std::shared_ptr<guest::AgentClient>> connected = co_await guest::AgentClient::Connect(*std::move(socket), token, boot_by);
  if (!connected.ok()) {
    // What the guest said last is the best hint there is.
    absl::StatusOr<std::string> console = co_await build->vm->ReadConsole(65536, Deadline::In(std::chrono::seconds(2)));
    std::string tail = console.ok() ? *console : std::string();
    if (tail.size() > kMaxConsoleTail) { tail = tail.substr(tail.size() - kMaxConsoleTail); }
    co_return Annotate(connected.status(), absl::StrCat("the guest did not boot to its agent; its console ends: \"", absl::Utf8SafeCHexEscape(tail), "\""));
  }
  const std::shared_ptr<guest::AgentClient> agent = *std::move(connected);
  const auto booted = std::chrono::steady_clock::now();
  absl::StatusOr<guest::agentpb::PingResponse> ping = co_await agent->Ping(deadline.Within(std::chrono::seconds(10)));
  if (!ping.ok()) { co_return ping.status(); }

  guest::agentpb::WarmupRequest warmup;
  warmup.set_start_runner(build->image.has_runner || ping->runner() != guest::agentpb::RUNNER_STATE_ABSENT);
  warmup.set_code(spec.warmup.value_or(build->image.warm_up));
  warmup.set_timeout_ns(std::chrono::nanoseconds(kWarmupDeadline).count());
  absl::StatusOr<guest::agentpb::WarmupResponse> warmed =
      co_await agent->Warmup(std::move(warmup), deadline.Within(kWarmupDeadline + std::chrono::seconds(5)));
  if (!warmed.ok()) { co_return Annotate(warmed.status(), "warm-up"); }
  if (warmed->has_code_error()) {
    co_return Error(absl::StatusCode::kFailedPrecondition, Reason::kRunnerUnavailable,
                    absl::StrCat("the warm-up code failed: ", absl::Utf8SafeCHexEscape(warmed->code_error())))
        .Field("warmup", "raised an error in the guest");
  }
  FORKD_CO_RETURN_IF_ERROR(co_await agent->Sync(deadline.Within(std::chrono::seconds(30))));
  const auto warm = std::chrono::steady_clock::now();
  agent->Close();

  FORKD_CO_RETURN_IF_ERROR(co_await build->vm->Pause(deadline));
  absl::StatusOr<std::string> state = co_await build->vm->SaveDeviceState(deadline);
  if (!state.ok()) { co_return state.status(); }
  FORKD_CO_RETURN_IF_ERROR(co_await build->vm->Kill(Deadline::In(std::chrono::seconds(10))));
  build->boot_reservation.Release();

  snapshot::Manifest manifest;
  manifest.set_created_at_unix(NowUnix());
  manifest.set_kind(snapshot::ROOT);
  manifest.set_root_tag(spec.tag.str());
  for (const auto& [key, value] : parts_.driver->RecordFor(spec.shape, /*has_rootfs=*/true).ToMap()) { (*manifest.mutable_machine())[key] = value; }
  manifest.mutable_shape()->set_vcpus(spec.shape.vcpus);
  manifest.mutable_shape()->set_memory_mib(spec.shape.memory_mib);
  manifest.mutable_image()->set_name(spec.image);
  manifest.mutable_image()->set_hash(build->image.hash);
  const std::pair<snapshot::HostFile*, const HostFile*> files[] = {{manifest.mutable_kernel(), &build->image.kernel},
                                                                   {manifest.mutable_initrd(), &build->image.initrd},
                                                                   {manifest.mutable_rootfs(), &build->image.rootfs}};
  for (const auto& [to, from] : files) {
    to->set_path(from->path);
    to->set_sha256(from->sha256);
  }
  manifest.set_agent_version(ping->agent_version());
  manifest.set_sync_token(token.ToHex());
  for (const auto& [key, value] : spec.labels) { (*manifest.mutable_labels())[key] = value; }
  manifest.add_captured("memory");
  manifest.add_captured("device-state");
  manifest.add_captured("rootfs read-only, shared");

  auto publish = [this, &spec, ram = *ram, &state, &manifest]() -> absl::StatusOr<std::pair<snapshot::Manifest, snapshot::SnapshotSizes>> {
    FORKD_RETURN_IF_ERROR(ram->SealBlocking());
    FORKD_ASSIGN_OR_RETURN(snapshot::StagedSnapshot staged, parts_.store->BeginBlocking(spec.tag));
    FORKD_RETURN_IF_ERROR(staged.WriteDeviceStateBlocking(*state));
    FORKD_RETURN_IF_ERROR(staged.WriteMemoryBlocking(ram->fd(), static_cast<std::uint64_t>(ram->size_bytes())));
    FORKD_ASSIGN_OR_RETURN(snapshot::Manifest written, staged.PublishBlocking(std::move(manifest)));
    FORKD_ASSIGN_OR_RETURN(const snapshot::SnapshotSizes sizes, parts_.store->SizesBlocking(spec.tag));
    return std::make_pair(std::move(written), sizes);
  };
  absl::StatusOr<std::pair<snapshot::Manifest, snapshot::SnapshotSizes>> published = co_await parts_.pool->Run(std::move(publish));
  if (!published.ok()) { co_return published.status(); }

  SnapshotView view = snapshots_.at(spec.tag);
  view.row.status = SnapshotStatus::kReady;
  view.row.physical_bytes = published->second.total_physical_bytes;
  view.device_state_bytes = static_cast<std::int64_t>(state->size());
  view.vmm = published->first.machine().at("vmm");
  view.vmm_version = published->first.machine().at("vmm_version");
  view.accelerator = published->first.machine().at("accelerator");
  view.image_hash = build->image.hash;
  view.agent_version = ping->agent_version();
  std::optional<IdempotentResult> reply;
  if (spec.remember) { reply = spec.remember(view); }
  auto mark = [registry = parts_.registry, row = view.row, reply = std::move(reply)] { return registry->MarkSnapshotReadyBlocking(row, reply); };
  FORKD_CO_RETURN_IF_ERROR(co_await parts_.pool->Run(std::move(mark)));
  snapshots_.at(spec.tag) = view;

  auto resident = std::make_shared<ResidentSnapshot>();
  resident->root = std::make_shared<ResidentRoot>(spec.tag);
  resident->root->image = *ram;
  resident->root->reservation = std::move(build->root_reservation);
  resident->manifest = std::move(published->first);
  resident->device_state = std::make_shared<const std::string>(*std::move(state));
  resident->sync_token = token;
  resident->shape = spec.shape;
  resident_.Put(spec.tag, std::move(resident));
  const auto ms = [](auto from, auto to) { return std::chrono::duration_cast<std::chrono::milliseconds>(to - from).count(); };
  const auto now = std::chrono::steady_clock::now();
  spdlog::info("snapshot ready tag={} image={} boot_ms={} warmup_ms={} save_ms={} stored_bytes={} request={}", spec.tag.str(), spec.image,
               ms(began, booted), ms(booted, warm), ms(warm, now), view.row.physical_bytes, spec.request_id);
  co_return view;
}

}  // namespace forkd::engine
