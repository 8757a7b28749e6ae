// Delete, pause, resume.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

absl::Status StateError(const Sandbox& sandbox, Reason reason, absl::string_view wanted) {
  return Error(absl::StatusCode::kFailedPrecondition, reason,
               absl::StrCat("sandbox ", Quoted(sandbox.id().str()), " is ", SandboxStateName(sandbox.state()), ", not ", wanted,
                            sandbox.view.row.failure.empty() ? "" : absl::StrCat(": ", sandbox.view.row.failure)))
      .Meta("id", sandbox.id().str())
      .Meta("state", SandboxStateName(sandbox.state()))
      .Resource("sandbox", sandbox.id().str());
}

absl::Status Late(const Sandbox& sandbox) {
  return Error(absl::StatusCode::kAborted, Reason::kSandboxBusy,
               absl::StrCat("another change of sandbox ", Quoted(sandbox.id().str()), " is still under way"))
      .Meta("id", sandbox.id().str());
}

}  // namespace

Task<absl::Status> Engine::DeleteSandbox(SandboxId id) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxPtr sandbox, Find(id));
  const bool first = !std::exchange(sandbox->deleting, true);
  if (first) {
    SetState(*sandbox, SandboxState::kStopping);
    // Not after the transition under way but at once: its VM's death is what ends a transition that hangs.
    if (sandbox->agent != nullptr) { sandbox->agent->Close(); }
    if (sandbox->vm != nullptr) {
      if (const absl::Status killed = co_await sandbox->vm->Kill(Deadline::In(std::chrono::seconds(10))); !killed.ok()) {
        spdlog::error("VMM not ended sandbox={} error=\"{}\"", id.str(), std::string(killed.message()));
      }
    }
  }
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->transition.Acquire(Deadline::Never());
  if (!sandboxes_.contains(id)) {
    // Another delete was faster.
    co_return Find(id).status();
  }
  co_await TearDown(sandbox);
  std::optional<AsyncMutex::Guard> row = co_await sandbox->row_write.Acquire(Deadline::Never());
  auto remove = [registry = parts_.registry, id] { return registry->DeleteSandboxBlocking(id); };
  absl::StatusOr<bool> removed = co_await parts_.pool->Run(std::move(remove));
  if (!removed.ok()) { co_return removed.status(); }
  sandboxes_.erase(id);
  Announce(SandboxEventKind::kDeleted, *sandbox);
  spdlog::info("deleted sandbox={}", id.str());
  co_return absl::OkStatus();
}

Task<absl::StatusOr<SandboxView>> Engine::PauseSandbox(SandboxId id, Deadline deadline) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxPtr sandbox, Find(id));
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->transition.Acquire(deadline);
  if (!guard.has_value()) { co_return Late(*sandbox); }
  if (sandbox->state() == SandboxState::kPaused) { co_return sandbox->view; }
  if (sandbox->state() != SandboxState::kRunning) { co_return StateError(*sandbox, Reason::kSandboxNotRunning, "RUNNING"); }
  FORKD_CO_RETURN_IF_ERROR(co_await sandbox->vm->Pause(deadline));
  if (sandbox->state() != SandboxState::kRunning) { co_return StateError(*sandbox, Reason::kSandboxNotRunning, "RUNNING"); }
  SetState(*sandbox, SandboxState::kPaused);
  FORKD_CO_RETURN_IF_ERROR(co_await Persist(sandbox));
  co_return sandbox->view;
}

Task<absl::StatusOr<SandboxView>> Engine::ResumeSandbox(SandboxId id, Deadline deadline) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxPtr sandbox, Find(id));
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->transition.Acquire(deadline);
  if (!guard.has_value()) { co_return Late(*sandbox); }
  if (sandbox->state() == SandboxState::kRunning) { co_return sandbox->view; }
  if (sandbox->state() != SandboxState::kPaused) { co_return StateError(*sandbox, Reason::kSandboxNotPaused, "PAUSED"); }
  FORKD_CO_RETURN_IF_ERROR(co_await sandbox->vm->Resume(deadline));
  if (sandbox->state() != SandboxState::kPaused) { co_return StateError(*sandbox, Reason::kSandboxNotPaused, "PAUSED"); }
  SetState(*sandbox, SandboxState::kRunning);
  sandbox->view.last_used_at_unix = NowUnix();
  FORKD_CO_RETURN_IF_ERROR(co_await Persist(sandbox));
  RescheduleExpiry();
  co_return sandbox->view;
}

}  // namespace forkd::engine
