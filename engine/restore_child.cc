// How a child comes to be: the steps that a cold fork and a standby child share, and the making of the latter.
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/engine.h"

namespace forkd::engine {
namespace {

constexpr std::chrono::seconds kStandbyDeadline{60};

}  // namespace

Task<absl::StatusOr<std::unique_ptr<vmm::Vm>>> Engine::RestoreChild(std::string id, std::string run_dir,
                                                                    std::shared_ptr<const ResidentSnapshot> origin,
                                                                    std::optional<std::int64_t> memory_limit_mib, Deadline deadline) {
  FORKD_CO_RETURN_IF_ERROR(co_await MakeRunDir(run_dir));
  absl::StatusOr<std::vector<UniqueFd>> cgroups = co_await MakeLeaf(run_dir, memory_limit_mib);
  if (!cgroups.ok()) { co_return cgroups.status(); }
  vmm::RestoreSpec restore;
  restore.cgroups = *std::move(cgroups);
  restore.id = std::move(id);
  restore.shape = origin->shape;
  restore.root = origin->root->image;
  restore.device_state = origin->device_state;
  restore.pages = origin->pages;
  restore.run_dir = std::move(run_dir);
  if (const snapshot::HostFile& rootfs = origin->manifest.rootfs(); !rootfs.path().empty()) {
    auto open = [images = parts_.images, path = rootfs.path(), sha256 = rootfs.sha256()] { return images->ReopenBlocking(path, sha256); };
    absl::StatusOr<HostFile> file = co_await parts_.pool->Run(std::move(open));
    if (!file.ok()) { co_return file.status(); }
    restore.rootfs = std::move(file->fd);
  }
  co_return co_await parts_.driver->Restore(std::move(restore), deadline);
}

Task<absl::StatusOr<std::shared_ptr<guest::AgentClient>>> Engine::ResumeAndConnect(vmm::Vm* vm, ttrpc::SyncToken token, Deadline deadline) {
  // Connected before the guest runs: its first instructions find the host already there.
  absl::StatusOr<UniqueFd> socket = co_await vm->ConnectAgent(deadline);
  if (!socket.ok()) { co_return socket.status(); }
  FORKD_CO_RETURN_IF_ERROR(co_await vm->Resume(deadline));
  co_return co_await guest::AgentClient::Connect(*std::move(socket), token, deadline);
}

Task<absl::StatusOr<std::unique_ptr<StandbyChild>>> Engine::MakeStandby(SnapshotTag tag) {
  absl::StatusOr<std::shared_ptr<const ResidentSnapshot>> origin = co_await resident_.Get(tag, Deadline::In(kStandbyDeadline));
  if (!origin.ok()) { co_return origin.status(); }
  auto child = std::make_unique<StandbyChild>();
  child->origin = *std::move(origin);
  // A plain reservation: a child that waits never pushes another out.
  FORKD_CO_ASSIGN_OR_RETURN(child->reservation, admission_.Reserve(SandboxEstimateMib(child->origin->shape.memory_mib, 0), "a standby child"));
  const std::string id = absl::StrCat("standby-", NowUnix(), "-", ++standby_sequence_);
  child->run_dir = RunDirOf(id);
  const absl::Status made = co_await MakeStandbySteps(child.get(), id);
  if (!made.ok()) {
    co_await DiscardStandby(std::move(child));
    co_return made;
  }
  co_return child;
}

Task<absl::Status> Engine::MakeStandbySteps(StandbyChild* child, std::string id) {
  const Deadline deadline = Deadline::In(kStandbyDeadline);
  absl::StatusOr<std::unique_ptr<vmm::Vm>> vm = co_await RestoreChild(std::move(id), child->run_dir, child->origin, std::nullopt, deadline);
  if (!vm.ok()) { co_return vm.status(); }
  child->vm = *std::move(vm);
  child->vm->OnExit([child](const vmm::VmExit&) { child->dead = true; });
  absl::StatusOr<std::shared_ptr<guest::AgentClient>> agent = co_await ResumeAndConnect(child->vm.get(), child->origin->sync_token, deadline);
  if (!agent.ok()) { co_return agent.status(); }
  child->agent = *std::move(agent);
  // What the claim and its first user will run: the emulator translates that code now and not then. First an exec, and an eval where there is a
  // runner.
  guest::agentpb::ExecStart start;
  start.add_argv("/bin/true");
  absl::StatusOr<guest::ExecResult> ran = co_await child->agent->Exec(std::move(start), 0, deadline);
  if (!ran.ok()) { co_return ran.status(); }
  absl::StatusOr<guest::agentpb::PingResponse> ping = co_await child->agent->Ping(deadline);
  if (!ping.ok()) { co_return ping.status(); }
  if (ping->runner() == guest::agentpb::RUNNER_STATE_READY) {
    guest::agentpb::EvalRequest eval;
    eval.set_code("None");
    eval.set_timeout_ns(std::chrono::nanoseconds(kStandbyDeadline).count());
    absl::StatusOr<guest::agentpb::EvalResponse> evaluated = co_await child->agent->Eval(std::move(eval), deadline);
    if (!evaluated.ok()) { co_return evaluated.status(); }
  }
  // And the preparation itself, whose result the claim's own replaces.
  FORKD_CO_RETURN_IF_ERROR(co_await SendIdentity(child->agent, "standby", NextGuestGeneration(), /*kill_orphans=*/false, deadline));
  co_return co_await child->vm->Pause(deadline);
}

Task<void> Engine::DiscardStandby(std::shared_ptr<StandbyChild> child) {
  if (child->agent != nullptr) { child->agent->Close(); }
  if (child->vm != nullptr) { static_cast<void>(co_await child->vm->Kill(Deadline::In(std::chrono::seconds(10)))); }
  child->reservation.Release();
  co_await RemoveLeaf(child->run_dir);
  co_await RemoveRunDir(child->run_dir);
}

}  // namespace forkd::engine
