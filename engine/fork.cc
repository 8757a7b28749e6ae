// Fork: N children of a snapshot, each restored on the shared root image and made a machine of its own before anybody sees it.
#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "base/task_group.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

// A child that has not answered by then never will: under emulation, on a loaded machine, 100 at once took 2 s.
constexpr std::chrono::seconds kChildDeadline{60};
constexpr std::size_t kEntropyBytes = 64;

std::string RandomBytes(std::size_t count) {
  std::string bytes(count, '\0');
  // OpenSSL reseeds from the kernel; it answers 0 only when the kernel's generator is broken.
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(count)) != 1) { std::abort(); }
  return bytes;
}

// A random UUID (RFC 9562, version 4).
std::string RandomUuid() {
  std::string bytes = RandomBytes(16);
  bytes[6] = static_cast<char>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<char>((bytes[8] & 0x3f) | 0x80);
  const std::string hex = absl::BytesToHexString(bytes);
  return absl::StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-", hex.substr(16, 4), "-", hex.substr(20));
}

// For RunWindowed, whose tasks have no result of their own.
Task<void> Keep(Task<absl::Status> task, absl::Status* result) { *result = co_await std::move(task); }

}  // namespace

Task<absl::StatusOr<ForkResult>> Engine::Fork(ForkSpec spec, Deadline deadline) {
  const auto began = std::chrono::steady_clock::now();
  if (shutting_down_) { co_return Error(absl::StatusCode::kUnavailable, Reason::kShuttingDown, "the daemon is stopping"); }
  const auto known = snapshots_.find(spec.snapshot);
  if (known == snapshots_.end()) {
    co_return Error(absl::StatusCode::kNotFound, Reason::kSnapshotUnknown, absl::StrCat("snapshot ", spec.snapshot.str(), " not found"))
        .Meta("tag", spec.snapshot.str())
        .Resource("snapshot", spec.snapshot.str());
  }
  const SnapshotRow snapshot = known->second.row;
  if (snapshot.status != SnapshotStatus::kReady) {
    co_return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotNotReady,
                    absl::StrCat("snapshot `", spec.snapshot.str(), "` is not bootable: status=", SnapshotStatusName(snapshot.status), "; ",
                                 snapshot.warning.empty() ? "snapshot is not ready for restore" : snapshot.warning))
        .Meta("tag", spec.snapshot.str());
  }
  if (static_cast<int64_t>(sandboxes_.size()) + spec.n > options_.max_sandboxes) {
    co_return Error(absl::StatusCode::kResourceExhausted, Reason::kLimitReached,
                    absl::StrCat(spec.n, " more sandboxes would pass the limit of ", options_.max_sandboxes, " (", sandboxes_.size(), " exist)"))
        .RetryAfter(std::chrono::seconds(2));
  }
  absl::StatusOr<std::shared_ptr<const ResidentSnapshot>> origin = co_await resident_.Get(spec.snapshot, deadline);
  if (!origin.ok()) { co_return origin.status(); }

  const StandbyPool::Quiet no_refill(&standby_);
  std::vector<std::unique_ptr<StandbyChild>> claimed = standby_.Claim(spec.snapshot, spec.n, *origin);
  const int hits = static_cast<int>(claimed.size());

  // Admission: all or none, unless the caller takes what there is. Nothing waits in between, so it is atomic.
  ForkResult result;
  const int64_t estimate = SandboxEstimateMib((*origin)->shape.memory_mib, spec.memory_limit_mib.value_or(0));
  std::vector<MemoryReservation> reservations;
  absl::Status refused;
  for (int i = 0; i < spec.n; ++i) {
    if (i < hits) {
      reservations.push_back(std::move(claimed[static_cast<std::size_t>(i)]->reservation));
      continue;
    }
    absl::StatusOr<MemoryReservation> one = ReserveOrEvict(estimate, absl::StrCat("sandbox ", i + 1, " of ", spec.n));
    if (!one.ok()) {
      refused = one.status();
      break;
    }
    reservations.push_back(*std::move(one));
  }
  if (!refused.ok() && (!spec.allow_partial || reservations.empty())) {
    for (std::unique_ptr<StandbyChild>& child : claimed) { co_await DiscardStandby(std::move(child)); }
    co_return refused;
  }

  const int admitted = static_cast<int>(reservations.size());
  const std::int64_t now = NowUnix();
  const vmm::DriverCapabilities capabilities = parts_.driver->capabilities();
  std::vector<SandboxPtr> children;
  std::vector<SandboxRow> rows;
  for (int i = 0; i < admitted; ++i) {
    SandboxRow row(ids_.Next(now), spec.snapshot, snapshot.root_tag);
    row.vmm = "qemu";
    row.accelerator = std::string(vmm::AcceleratorName(capabilities.accelerator));
    row.isolation = capabilities.accelerator == vmm::Accelerator::kKvm ? "hardware" : "emulated";
    row.run_dir = i < hits ? claimed[static_cast<std::size_t>(i)]->run_dir : RunDirOf(row.id.str());
    row.labels = spec.labels;
    row.created_at_unix = now;
    if (spec.lifetime_secs.has_value()) { row.expires_at_unix = now + *spec.lifetime_secs; }
    row.idle_timeout_secs = spec.idle_timeout_secs;
    row.memory_limit_mib = spec.memory_limit_mib;
    row.memory_mib = (*origin)->shape.memory_mib;
    row.vcpus = (*origin)->shape.vcpus;
    row.request_id = spec.request_id;
    rows.push_back(row);
    auto child = std::make_shared<Sandbox>(std::move(row), parts_.runtime->executor());
    child->view.image = snapshot.image;
    child->view.row.generation = 1;  // As the registry counts from the insert.
    child->view.last_used_at_unix = now;
    child->origin = *origin;
    child->sync_token = (*origin)->sync_token;
    child->reservation = std::move(reservations[static_cast<std::size_t>(i)]);
    if (i < hits) {
      StandbyChild& standby = *claimed[static_cast<std::size_t>(i)];
      child->claimed = true;
      child->vm = std::move(standby.vm);
      child->vm->OnExit([](const vmm::VmExit&) {});  // Until the claim has succeeded its end is the claim's to notice.
      child->agent = std::move(standby.agent);
      child->view.row.pid = child->vm->process().pid;
      child->view.row.start_time = child->vm->process().start_time_ticks;
    }
    children.push_back(std::move(child));
  }
  // Before any process exists: a successor of this daemon finds the rows and cleans.
  auto insert = [registry = parts_.registry, &rows] { return registry->InsertSandboxesBlocking(rows); };
  if (const absl::Status inserted = co_await parts_.pool->Run(std::move(insert)); !inserted.ok()) {
    for (const SandboxPtr& child : children) { co_await TearDown(child); }
    co_return inserted;
  }
  for (const SandboxPtr& child : children) {
    sandboxes_[child->id()] = child;
    Announce(SandboxEventKind::kCreated, *child);
  }

  std::vector<absl::Status> outcomes(children.size());
  co_await StartAll(children, *origin, deadline, &outcomes);

  std::vector<SandboxPtr> alive;
  absl::Status first_error;
  for (std::size_t i = 0; i < children.size(); ++i) {
    if (outcomes[i].ok()) {
      alive.push_back(children[i]);
      continue;
    }
    if (first_error.ok()) { first_error = outcomes[i]; }
    result.failures.push_back(ForkFailure{static_cast<int>(i), outcomes[i]});
  }
  for (int i = admitted; i < spec.n; ++i) { result.failures.push_back(ForkFailure{i, refused}); }
  const bool undo_all = !first_error.ok() && (!spec.allow_partial || alive.empty());
  for (std::size_t i = 0; i < children.size(); ++i) {
    if (!undo_all && outcomes[i].ok()) { continue; }
    if (absl::Status undone = co_await DeleteSandbox(children[i]->id()); !undone.ok() && !absl::IsNotFound(undone)) {
      spdlog::error("child not undone sandbox={} error=\"{}\"", children[i]->id().str(), std::string(undone.message()));
    }
  }
  if (undo_all) {
    co_return Annotate(first_error, spec.n == 1 ? std::string("the child") : absl::StrCat(result.failures.size(), " of ", spec.n, " children"));
  }

  const std::int64_t ready_ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - began).count();
  for (const SandboxPtr& child : alive) {
    child->view.ready_ms = ready_ms;
    if (child->state() == SandboxState::kStarting) { SetState(*child, SandboxState::kRunning); }
    result.sandboxes.push_back(child->view);
  }
  std::optional<IdempotentResult> reply;
  if (spec.remember) { reply = spec.remember(result); }
  if (const absl::Status written = co_await PersistAll(alive, std::move(reply)); !written.ok()) {
    // What the next daemon would take for unfinished is not handed over.
    for (const SandboxPtr& child : alive) { static_cast<void>(co_await DeleteSandbox(child->id())); }
    co_return written;
  }
  RescheduleExpiry();
  spdlog::info("forked snapshot={} n={} standby={} failed={} ms={} request={}", spec.snapshot.str(), result.sandboxes.size(), hits,
               result.failures.size(), ready_ms, spec.request_id);
  co_return result;
}

absl::StatusOr<MemoryReservation> Engine::ReserveOrEvict(int64_t mib, std::string what) {
  absl::StatusOr<MemoryReservation> reservation = admission_.Reserve(mib, what);
  while (!reservation.ok() && (standby_.EvictOne() || resident_.DropIdle())) { reservation = admission_.Reserve(mib, what); }
  return reservation;
}

Task<void> Engine::StartAll(std::vector<SandboxPtr> sandboxes, std::shared_ptr<const ResidentSnapshot> origin, Deadline deadline,
                            std::vector<absl::Status>* results) {
  auto start_one = [this, &sandboxes, &origin, deadline, results](std::size_t i) {
    return StartChild(sandboxes[i], origin, deadline, &(*results)[i]);
  };
  co_await RunWindowed(sandboxes.size(), static_cast<std::size_t>(options_.restore_window), start_one);
}

Task<void> Engine::StartChild(SandboxPtr sandbox, std::shared_ptr<const ResidentSnapshot> origin, Deadline deadline, absl::Status* result) {
  // Held while it starts: a delete ends the VM at once, but cleans up only after us.
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->transition.Acquire(deadline);
  if (!guard.has_value()) {
    *result = Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, "the child did not start in time");
    co_return;
  }
  *result = co_await StartChildSteps(sandbox, std::move(origin), deadline.Within(kChildDeadline));
  if (!result->ok()) {
    spdlog::warn("child did not start sandbox={} error=\"{}\"", sandbox->id().str(), std::string(result->message()));
  }
}

Task<absl::Status> Engine::StartChildSteps(SandboxPtr sandbox, std::shared_ptr<const ResidentSnapshot> origin, Deadline deadline) {
  const auto deleted = [&sandbox]() -> absl::Status {
    if (!sandbox->deleting) { return absl::OkStatus(); }
    return Error(absl::StatusCode::kAborted, Reason::kSandboxDeleted, "it was deleted while it started");
  };
  FORKD_CO_RETURN_IF_ERROR(deleted());
  if (sandbox->claimed) {
    const absl::Status claimed = co_await Claim(sandbox, deadline);
    FORKD_CO_RETURN_IF_ERROR(deleted());
    if (!claimed.ok()) {
      // It may have died a moment ago: its place is taken by one that is restored now.
      spdlog::warn("standby child of no use sandbox={} error=\"{}\"", sandbox->id().str(), std::string(claimed.message()));
      co_await AbandonClaim(sandbox);
      FORKD_CO_RETURN_IF_ERROR(deleted());
    }
  }
  if (!sandbox->claimed) {
    const auto began = std::chrono::steady_clock::now();
    absl::StatusOr<std::unique_ptr<vmm::Vm>> vm = co_await RestoreChild(sandbox->id().str(), sandbox->view.row.run_dir, std::move(origin),
                                                                          sandbox->view.row.memory_limit_mib, deadline);
    if (!vm.ok()) { co_return vm.status(); }
    sandbox->vm = *std::move(vm);
    sandbox->view.row.pid = sandbox->vm->process().pid;
    sandbox->view.row.start_time = sandbox->vm->process().start_time_ticks;
    FORKD_CO_RETURN_IF_ERROR(deleted());
    WatchExit(sandbox);
    const auto restored = std::chrono::steady_clock::now();
    absl::StatusOr<std::shared_ptr<guest::AgentClient>> agent = co_await ResumeAndConnect(sandbox->vm.get(), sandbox->sync_token, deadline);
    if (!agent.ok()) { co_return agent.status(); }
    sandbox->agent = *std::move(agent);
    const auto connected = std::chrono::steady_clock::now();
    FORKD_CO_RETURN_IF_ERROR(co_await PrepareGuest(sandbox.get(), /*kill_orphans=*/false, deadline));
    const auto us = [](auto from, auto to) { return std::chrono::duration_cast<std::chrono::microseconds>(to - from).count(); };
    spdlog::debug("child started sandbox={} restore_us={} connect_us={} prepare_us={}", sandbox->id().str(), us(began, restored),
                  us(restored, connected), us(connected, std::chrono::steady_clock::now()));
  }
  if (sandbox->state() == SandboxState::kFailed) {
    co_return Error(absl::StatusCode::kUnavailable, Reason::kSandboxFailed, sandbox->view.row.failure);
  }
  co_return absl::OkStatus();
}

Task<absl::Status> Engine::Claim(SandboxPtr sandbox, Deadline deadline) {
  FORKD_CO_RETURN_IF_ERROR(co_await ApplyQuota(sandbox->view.row.run_dir, sandbox->view.row.memory_limit_mib));
  // The message is on its way before the guest runs: its first instructions read it.
  absl::Status prepared;
  absl::Status resumed;
  const auto both = [this, &sandbox, deadline, &prepared, &resumed](std::size_t step) {
    return step == 0 ? Keep(PrepareGuest(sandbox.get(), /*kill_orphans=*/false, deadline), &prepared) : Keep(sandbox->vm->Resume(deadline), &resumed);
  };
  co_await RunWindowed(2, 2, both);
  FORKD_CO_RETURN_IF_ERROR(resumed);
  FORKD_CO_RETURN_IF_ERROR(prepared);
  WatchExit(sandbox);
  co_return absl::OkStatus();
}

Task<void> Engine::AbandonClaim(SandboxPtr sandbox) {
  sandbox->claimed = false;
  sandbox->agent->Close();
  sandbox->agent = nullptr;
  if (const absl::Status killed = co_await sandbox->vm->Kill(Deadline::In(std::chrono::seconds(10))); !killed.ok()) {
    spdlog::error("VMM not ended sandbox={} error=\"{}\"", sandbox->id().str(), std::string(killed.message()));
  }
  // Kept: a delete that came meanwhile may still be waiting on it.
  sandbox->abandoned_vm = std::move(sandbox->vm);
  co_await RemoveLeaf(sandbox->view.row.run_dir);
  co_await RemoveRunDir(sandbox->view.row.run_dir);
  sandbox->view.row.run_dir = RunDirOf(sandbox->id().str());
}

Task<absl::Status> Engine::PrepareGuest(Sandbox* sandbox, bool kill_orphans, Deadline deadline) {
  sandbox->view.generation = NextGuestGeneration();
  return SendIdentity(sandbox->agent, sandbox->id().str(), sandbox->view.generation, kill_orphans, deadline);
}

// Milliseconds of the clock's start, or one more than the last: later daemons and clones always deliver a larger number.
std::int64_t Engine::NextGuestGeneration() {
  next_guest_generation_ = std::max<std::int64_t>(
      next_guest_generation_ + 1,
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
  return next_guest_generation_;
}

Task<absl::Status> Engine::SendIdentity(std::shared_ptr<guest::AgentClient> agent, std::string hostname, std::int64_t generation, bool kill_orphans,
                                        Deadline deadline) {
  guest::agentpb::PrepareRequest prepare;
  prepare.set_hostname(std::move(hostname));
  prepare.set_machine_id(absl::BytesToHexString(RandomBytes(16)));
  prepare.set_boot_id(RandomUuid());
  prepare.set_entropy(RandomBytes(kEntropyBytes));
  prepare.set_generation(static_cast<uint64_t>(generation));
  prepare.set_kill_orphans(kill_orphans);
  prepare.set_wall_clock_ns(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
  absl::StatusOr<guest::agentpb::PrepareResponse> prepared = co_await agent->Prepare(std::move(prepare), deadline);
  if (!prepared.ok()) { co_return prepared.status(); }
  if (prepared->failures_size() > 0) {
    // Fail closed: a clone that is not a machine of its own is not handed over.
    const guest::agentpb::PrepareFailure& failure = prepared->failures(0);
    co_return Error(absl::StatusCode::kInternal, Reason::kAgentProtocol,
                    absl::StrCat("the guest could not be made a machine of its own: step ", Quoted(failure.step()), ": ",
                                 absl::Utf8SafeCHexEscape(failure.message())))
        .Meta("step", failure.step());
  }
  co_return absl::OkStatus();
}

Task<absl::Status> Engine::KillOrphans(std::shared_ptr<guest::AgentClient> agent, Deadline deadline) {
  guest::agentpb::PrepareRequest prepare;
  prepare.set_entropy(RandomBytes(kEntropyBytes));
  prepare.set_generation(static_cast<uint64_t>(NextGuestGeneration()));
  prepare.set_kill_orphans(true);
  co_return (co_await agent->Prepare(std::move(prepare), deadline)).status();
}

void Engine::WatchExit(const SandboxPtr& sandbox) {
  sandbox->vm->OnExit([this, weak = std::weak_ptr<Sandbox>(sandbox)](const vmm::VmExit& exit) {
    const SandboxPtr failed = weak.lock();
    if (failed == nullptr || failed->deleting) { return; }
    parts_.runtime->Spawn(HandleExit(failed, "VMM_FAILED", exit.reason));
  });
}

Task<void> Engine::HandleExit(SandboxPtr sandbox, std::string reason, std::string text) {
  if (co_await RanOutOfMemory(sandbox->view.row.run_dir)) {
    reason = "OUT_OF_MEMORY";
    text = absl::StrCat("out of memory: the VMM reached its limit of ", sandbox->view.row.memory_limit_mib.value_or(0), " MiB (", text, ")");
  }
  if (sandbox->deleting || sandbox->state() == SandboxState::kFailed) { co_return; }
  spdlog::warn("sandbox failed sandbox={} reason=\"{}\"", sandbox->id().str(), text);
  sandbox->view.row.failure = std::move(text);
  sandbox->view.failure_reason = std::move(reason);
  sandbox->view.failed_at_unix = NowUnix();
  SetState(*sandbox, SandboxState::kFailed);
  co_await TearDown(sandbox);
  sandbox->view.row.pid = 0;
  static_cast<void>(co_await Persist(sandbox));  // Logged there; the state in memory is what clients see.
}

Task<void> Engine::TearDown(SandboxPtr sandbox) {
  if (sandbox->agent != nullptr) { sandbox->agent->Close(); }
  if (sandbox->vm != nullptr) {
    if (const absl::Status killed = co_await sandbox->vm->Kill(Deadline::In(std::chrono::seconds(10))); !killed.ok()) {
      spdlog::error("VMM not ended sandbox={} pid={} error=\"{}\"", sandbox->id().str(), sandbox->view.row.pid, std::string(killed.message()));
    }
  }
  sandbox->reservation.Release();
  sandbox->origin = nullptr;
  co_await RemoveLeaf(sandbox->view.row.run_dir);
  co_await RemoveRunDir(sandbox->view.row.run_dir);
}

}  // namespace forkd::engine
