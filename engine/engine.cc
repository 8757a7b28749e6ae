#include "engine/engine.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {

std::int64_t NowUnix() { return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// ---- ActiveAgent ----

ActiveAgent::ActiveAgent(std::shared_ptr<Sandbox> sandbox, std::shared_ptr<guest::AgentClient> agent)
    : sandbox_(std::move(sandbox)), agent_(std::move(agent)) {
  ++sandbox_->active_calls;
  sandbox_->view.last_used_at_unix = NowUnix();
}

ActiveAgent::~ActiveAgent() {
  if (sandbox_ == nullptr) { return; }
  --sandbox_->active_calls;
  sandbox_->view.last_used_at_unix = NowUnix();
}

absl::Status ActiveAgent::Explain(const absl::Status& status) const {
  if (status.ok() || !agent_->closed()) { return status; }
  const std::string id = sandbox_->id().str();
  if (sandbox_->deleting) {
    return Error(absl::StatusCode::kAborted, Reason::kSandboxDeleted, absl::StrCat("sandbox ", Quoted(id), " was deleted while the call ran"))
        .Meta("id", id)
        .Resource("sandbox", id);
  }
  if (sandbox_->state() == SandboxState::kFailed) {
    return Error(absl::StatusCode::kUnavailable, Reason::kSandboxFailed, absl::StrCat("sandbox ", Quoted(id), " failed: ", sandbox_->view.row.failure))
        .Meta("id", id)
        .Resource("sandbox", id);
  }
  return Annotate(status, absl::StrCat("sandbox ", Quoted(id)));
}

// ---- EventQueue ----

void EventQueue::Push(const SandboxEvent& event) {
  if (closed_ || overflowed_) { return; }
  if (events_.size() >= kMaxQueued) {
    overflowed_ = true;
    events_.clear();
  } else {
    events_.push_back(event);
  }
  ready_.Set();
}

void EventQueue::Close() {
  closed_ = true;
  ready_.Set();
}

Task<std::optional<SandboxEvent>> EventQueue::Next(Deadline deadline) {
  if (!co_await ready_.Wait(deadline) || events_.empty()) { co_return std::nullopt; }
  SandboxEvent event = std::move(events_.front());
  events_.pop_front();
  if (events_.empty() && !closed_ && !overflowed_) { ready_.Reset(); }
  co_return event;
}

// ---- Engine ----

Engine::Engine(Parts parts, EngineOptions options)
    : parts_(parts),
      options_(std::move(options)),
      instance_(ToHex(Sha256Of(options_.state_dir)).substr(0, 12)),
      admission_(options_.memory_budget_mib, HostAvailableMib),
      resident_(parts.runtime->executor(), parts.pool, parts.store, options_.snapshot_root, parts.driver, &admission_),
      standby_(parts.runtime, options_.standby, std::bind_front(&Engine::MakeStandby, this), std::bind_front(&Engine::DiscardStandby, this)),
      expiry_changed_(parts.runtime->executor()),
      expiry_ended_(parts.runtime->executor()) {}

Engine::~Engine() = default;

absl::StatusOr<Engine::SandboxPtr> Engine::Find(const SandboxId& id) const {
  const auto it = sandboxes_.find(id);
  if (it == sandboxes_.end()) {
    return Error(absl::StatusCode::kNotFound, Reason::kSandboxUnknown, absl::StrCat("sandbox ", id.str(), " not found"))
        .Meta("id", id.str())
        .Resource("sandbox", id.str());
  }
  return it->second;
}

std::string Engine::RunDirOf(absl::string_view id) const { return absl::StrCat(options_.state_dir, "/run/", id); }

std::string Engine::SnapshotDirOf(const SnapshotTag& tag) const { return absl::StrCat(options_.snapshot_root, "/", tag.str()); }

Task<absl::Status> Engine::MakeRunDir(std::string path) {
  auto make = [path]() -> absl::Status {
    const std::string parent = std::filesystem::path(path).parent_path();
    if (mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST) { return ErrnoError(errno, absl::StrCat("make ", Quoted(parent))); }
    if (mkdir(path.c_str(), 0700) != 0) { return ErrnoError(errno, absl::StrCat("make ", Quoted(path))); }
    return absl::OkStatus();
  };
  co_return co_await parts_.pool->Run(std::move(make));
}

Task<void> Engine::RemoveRunDir(std::string path) {
  if (path.empty()) { co_return; }
  auto remove = [path] {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) { spdlog::error("run folder not removed path={} error=\"{}\"", path, error.message()); }
  };
  co_await parts_.pool->Run(std::move(remove));
}

Task<absl::Status> Engine::Persist(SandboxPtr sandbox) {
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->row_write.Acquire(Deadline::Never());
  if (!sandboxes_.contains(sandbox->id())) { co_return absl::OkStatus(); }  // Its row went with it.
  auto write = [registry = parts_.registry, row = sandbox->view.row] { return registry->UpdateSandboxBlocking(row); };
  absl::StatusOr<std::int64_t> generation = co_await parts_.pool->Run(std::move(write));
  if (!generation.ok()) {
    spdlog::error("registry row not written sandbox={} error=\"{}\"", sandbox->id().str(), std::string(generation.status().message()));
    co_return generation.status();
  }
  sandbox->view.row.generation = *generation;
  co_return absl::OkStatus();
}

Task<absl::Status> Engine::PersistAll(std::vector<SandboxPtr> sandboxes, std::optional<IdempotentResult> reply) {
  std::vector<AsyncMutex::Guard> guards;
  std::vector<SandboxRow> rows;
  for (const SandboxPtr& sandbox : sandboxes) {
    std::optional<AsyncMutex::Guard> guard = co_await sandbox->row_write.Acquire(Deadline::Never());
    guards.push_back(*std::move(guard));
  }
  std::erase_if(sandboxes, [this](const SandboxPtr& sandbox) { return !sandboxes_.contains(sandbox->id()); });
  for (const SandboxPtr& sandbox : sandboxes) { rows.push_back(sandbox->view.row); }
  auto write = [registry = parts_.registry, &rows, &reply] { return registry->UpdateSandboxesBlocking(rows, reply); };
  absl::StatusOr<std::vector<std::int64_t>> generations = co_await parts_.pool->Run(std::move(write));
  if (!generations.ok()) { co_return generations.status(); }
  for (std::size_t i = 0; i < sandboxes.size(); ++i) { sandboxes[i]->view.row.generation = (*generations)[i]; }
  co_return absl::OkStatus();
}

void Engine::Announce(SandboxEventKind kind, const Sandbox& sandbox) {
  if (watchers_.empty()) { return; }
  SandboxEvent event{kind, sandbox.view};
  event.at_unix_ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  event.sequence = ++event_sequence_;
  for (auto it = watchers_.begin(); it != watchers_.end();) {
    if (const std::shared_ptr<EventQueue> queue = it->lock()) {
      queue->Push(event);
      ++it;
    } else {
      it = watchers_.erase(it);
    }
  }
}

void Engine::SetState(Sandbox& sandbox, SandboxState state) {
  if (sandbox.view.row.state == state) { return; }
  sandbox.view.row.state = state;
  Announce(SandboxEventKind::kChanged, sandbox);
}

std::shared_ptr<EventQueue> Engine::Watch(bool include_current) {
  auto queue = std::make_shared<EventQueue>(parts_.runtime->executor());
  watchers_.push_back(queue);
  if (include_current) {
    for (const auto& [id, sandbox] : sandboxes_) {
      SandboxEvent event{SandboxEventKind::kCurrent, sandbox->view};
      event.at_unix_ms = NowUnix() * 1000;
      event.sequence = ++event_sequence_;
      queue->Push(event);
    }
  }
  if (shutting_down_) { queue->Close(); }
  return queue;
}

std::vector<SandboxView> Engine::ListSandboxes() const {
  std::vector<SandboxView> views;
  views.reserve(sandboxes_.size());
  for (const auto& [id, sandbox] : sandboxes_) { views.push_back(sandbox->view); }
  return views;
}

absl::StatusOr<SandboxView> Engine::GetSandbox(const SandboxId& id) const {
  FORKD_ASSIGN_OR_RETURN(const SandboxPtr sandbox, Find(id));
  return sandbox->view;
}

Task<absl::StatusOr<ActiveAgent>> Engine::Agent(SandboxId id, Deadline deadline) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxPtr sandbox, Find(id));
  const auto usable = [&sandbox] { return sandbox->state() == SandboxState::kRunning || sandbox->state() == SandboxState::kBranching; };
  const auto not_running = [&sandbox]() -> absl::Status {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSandboxNotRunning,
                 absl::StrCat("sandbox ", Quoted(sandbox->id().str()), " is ", SandboxStateName(sandbox->state()), ", not RUNNING",
                              sandbox->state() == SandboxState::kPaused ? ": resume it first" : "",
                              sandbox->view.row.failure.empty() ? "" : absl::StrCat(": ", sandbox->view.row.failure)))
        .Meta("id", sandbox->id().str())
        .Meta("state", SandboxStateName(sandbox->state()))
        .Resource("sandbox", sandbox->id().str());
  };
  if (!usable()) { co_return not_running(); }
  if (sandbox->agent != nullptr && !sandbox->agent->closed()) { co_return ActiveAgent(sandbox, sandbox->agent); }
  const Deadline connect_by = deadline.Within(std::chrono::seconds(10));
  std::optional<AsyncMutex::Guard> guard = co_await sandbox->agent_connect.Acquire(connect_by);
  if (!guard.has_value() || !usable()) {
    if (!usable()) { co_return not_running(); }
    co_return Error(absl::StatusCode::kUnavailable, Reason::kAgentUnreachable, absl::StrCat("the agent of sandbox ", Quoted(id.str()), " does not answer"));
  }
  if (sandbox->agent == nullptr || sandbox->agent->closed()) {
    sandbox->agent = nullptr;
    absl::StatusOr<UniqueFd> socket = co_await sandbox->vm->ConnectAgent(connect_by);
    if (!socket.ok()) { co_return Annotate(socket.status(), absl::StrCat("the agent of sandbox ", Quoted(id.str()))); }
    absl::StatusOr<std::shared_ptr<guest::AgentClient>> agent =
        co_await guest::AgentClient::Connect(*std::move(socket), sandbox->sync_token, connect_by);
    if (!agent.ok()) { co_return Annotate(agent.status(), absl::StrCat("the agent of sandbox ", Quoted(id.str()))); }
    // A new connection to a guest that had one: the programs whose callers went with it are killed, as they would be if one caller had gone.
    const absl::Status cleared = co_await KillOrphans(*agent, connect_by);
    if (!cleared.ok()) { co_return Annotate(cleared, absl::StrCat("the agent of sandbox ", Quoted(id.str()))); }
    if (!usable()) { co_return not_running(); }
    sandbox->agent = *std::move(agent);
  }
  co_return ActiveAgent(sandbox, sandbox->agent);
}

void Engine::BeginShutDown() {
  shutting_down_ = true;
  RescheduleExpiry();
  for (const std::weak_ptr<EventQueue>& watcher : watchers_) {
    if (const std::shared_ptr<EventQueue> queue = watcher.lock()) { queue->Close(); }
  }
}

Task<void> Engine::ShutDown(bool stop_sandboxes) {
  co_await expiry_ended_.Wait(Deadline::In(std::chrono::seconds(5)));
  co_await standby_.ShutDown();
  std::vector<SandboxId> all;
  for (const auto& [id, sandbox] : sandboxes_) { all.push_back(id); }
  for (const SandboxId& id : all) {
    if (stop_sandboxes) {
      if (const absl::Status deleted = co_await DeleteSandbox(id); !deleted.ok() && !absl::IsNotFound(deleted)) {
        spdlog::error("sandbox not deleted at exit sandbox={} error=\"{}\"", id.str(), std::string(deleted.message()));
      }
      continue;
    }
    const auto it = sandboxes_.find(id);
    if (it == sandboxes_.end()) { continue; }
    Sandbox& sandbox = *it->second;
    if (sandbox.agent != nullptr) { sandbox.agent->Close(); }
    if (sandbox.vm != nullptr) { sandbox.vm->Release(); }
  }
  co_await SweepCgroups();
}

}  // namespace forkd::engine
