#include "server/sandbox_service.h"

#include <chrono>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "server/convert.h"
#include "server/exec_stream.h"
#include "server/label_filter.h"
#include "server/remember.h"
#include "server/validate.h"

namespace forkd::server {
namespace {

using std::chrono::seconds;

// The contract's defaults (sandbox.proto).
constexpr int64_t kDefaultExecTimeoutSecs = 30;
constexpr int64_t kDefaultEvalTimeoutSecs = 30;
constexpr int64_t kDefaultMaxOutputBytes = 1 << 20;
constexpr seconds kPingDeadline{5};
constexpr seconds kFileStepDeadline{60};
// What the agent needs beyond a program's own time limit to kill and report.
constexpr seconds kGrace{10};

// With the contract's figures of a branch that was asked for as `diff`.
v1::SnapshotInfo BranchReply(const engine::SnapshotView& view, bool measured) {
  v1::SnapshotInfo info = ToProto(view);
  if (measured) {
    info.set_diff_ms(info.pause_ms());
    info.set_diff_physical_bytes(view.row.physical_bytes);
    info.set_diff_logical_bytes(view.row.memory_bytes);
  }
  return info;
}

}  // namespace

// ---- Registration: one line a method ----

SandboxService::Unary* SandboxService::CreateSandboxes(Context* c, const v1::CreateSandboxesRequest* q, v1::CreateSandboxesResponse* r) {
  return bridge_->Unary<v1::CreateSandboxesRequest, v1::CreateSandboxesResponse>(c, "CreateSandboxes", q, r, std::bind_front(&SandboxService::Create, this));
}
SandboxService::Unary* SandboxService::ListSandboxes(Context* c, const v1::ListSandboxesRequest* q, v1::ListSandboxesResponse* r) {
  return bridge_->Unary<v1::ListSandboxesRequest, v1::ListSandboxesResponse>(c, "ListSandboxes", q, r, std::bind_front(&SandboxService::List, this));
}
SandboxService::Unary* SandboxService::GetSandbox(Context* c, const v1::GetSandboxRequest* q, v1::SandboxInfo* r) {
  return bridge_->Unary<v1::GetSandboxRequest, v1::SandboxInfo>(c, "GetSandbox", q, r, std::bind_front(&SandboxService::Get, this));
}
SandboxService::Unary* SandboxService::DeleteSandbox(Context* c, const v1::DeleteSandboxRequest* q, v1::DeleteSandboxResponse* r) {
  return bridge_->Unary<v1::DeleteSandboxRequest, v1::DeleteSandboxResponse>(c, "DeleteSandbox", q, r, std::bind_front(&SandboxService::Delete, this));
}
SandboxService::Unary* SandboxService::PingSandbox(Context* c, const v1::PingSandboxRequest* q, v1::PingSandboxResponse* r) {
  return bridge_->Unary<v1::PingSandboxRequest, v1::PingSandboxResponse>(c, "PingSandbox", q, r, std::bind_front(&SandboxService::Ping, this));
}
SandboxService::Unary* SandboxService::Exec(Context* c, const v1::ExecRequest* q, v1::ExecResponse* r) {
  return bridge_->Unary<v1::ExecRequest, v1::ExecResponse>(c, "Exec", q, r, std::bind_front(&SandboxService::RunProgram, this));
}
grpc::ServerBidiReactor<v1::ExecStreamRequest, v1::ExecStreamResponse>* SandboxService::ExecStream(Context* c) {
  return bridge_->Bidi<v1::ExecStreamRequest, v1::ExecStreamResponse>(c, "ExecStream", std::bind_front(&SandboxService::StreamProgram, this));
}
SandboxService::Unary* SandboxService::Eval(Context* c, const v1::EvalRequest* q, v1::EvalResponse* r) {
  return bridge_->Unary<v1::EvalRequest, v1::EvalResponse>(c, "Eval", q, r, std::bind_front(&SandboxService::Evaluate, this));
}
SandboxService::Unary* SandboxService::BranchSandbox(Context* c, const v1::BranchSandboxRequest* q, v1::SnapshotInfo* r) {
  return bridge_->Unary<v1::BranchSandboxRequest, v1::SnapshotInfo>(c, "BranchSandbox", q, r, std::bind_front(&SandboxService::Branch, this));
}
SandboxService::Unary* SandboxService::PauseSandbox(Context* c, const v1::PauseSandboxRequest* q, v1::SandboxInfo* r) {
  return bridge_->Unary<v1::PauseSandboxRequest, v1::SandboxInfo>(c, "PauseSandbox", q, r, std::bind_front(&SandboxService::Pause, this));
}
SandboxService::Unary* SandboxService::ResumeSandbox(Context* c, const v1::ResumeSandboxRequest* q, v1::SandboxInfo* r) {
  return bridge_->Unary<v1::ResumeSandboxRequest, v1::SandboxInfo>(c, "ResumeSandbox", q, r, std::bind_front(&SandboxService::Resume, this));
}
grpc::ServerWriteReactor<v1::ReadFileResponse>* SandboxService::ReadFile(Context* c, const v1::ReadFileRequest* q) {
  auto handler = [this, request = *q](CallPtr call, std::shared_ptr<ReadPeer> peer) { return StreamFileOut(std::move(call), request, std::move(peer)); };
  return bridge_->ServerStream<v1::ReadFileResponse>(c, "ReadFile", handler);
}
grpc::ServerReadReactor<v1::WriteFileRequest>* SandboxService::WriteFile(Context* c, v1::FileInfo* r) {
  auto handler = [this, r](CallPtr call, std::shared_ptr<WritePeer> peer) { return StreamFileIn(std::move(call), r, std::move(peer)); };
  return bridge_->ClientStream<v1::WriteFileRequest>(c, "WriteFile", handler);
}
SandboxService::Unary* SandboxService::ListDirectory(Context* c, const v1::ListDirectoryRequest* q, v1::ListDirectoryResponse* r) {
  return bridge_->Unary<v1::ListDirectoryRequest, v1::ListDirectoryResponse>(c, "ListDirectory", q, r, std::bind_front(&SandboxService::ListFiles, this));
}
SandboxService::Unary* SandboxService::StatFile(Context* c, const v1::StatFileRequest* q, v1::FileInfo* r) {
  return bridge_->Unary<v1::StatFileRequest, v1::FileInfo>(c, "StatFile", q, r, std::bind_front(&SandboxService::Stat, this));
}
SandboxService::Unary* SandboxService::RemoveFile(Context* c, const v1::RemoveFileRequest* q, v1::RemoveFileResponse* r) {
  return bridge_->Unary<v1::RemoveFileRequest, v1::RemoveFileResponse>(c, "RemoveFile", q, r, std::bind_front(&SandboxService::Remove, this));
}
grpc::ServerWriteReactor<v1::WatchSandboxesResponse>* SandboxService::WatchSandboxes(Context* c, const v1::WatchSandboxesRequest* q) {
  auto handler = [this, request = *q](CallPtr call, std::shared_ptr<WatchPeer> peer) { return StreamEvents(std::move(call), request, std::move(peer)); };
  return bridge_->ServerStream<v1::WatchSandboxesResponse>(c, "WatchSandboxes", handler);
}

// ---- Life ----

Task<absl::StatusOr<engine::ActiveAgent>> SandboxService::AgentOf(std::string id, Deadline deadline) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxId parsed, SandboxId::Parse(id));
  co_return co_await engine_->Agent(parsed, deadline);
}

Task<absl::StatusOr<v1::CreateSandboxesResponse>> SandboxService::Create(CallPtr call, v1::CreateSandboxesRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(engine::ForkSpec spec, ToSpec(request, call->request_id()));
  spec.remember = RememberAs(request.idempotency_key(), [](const engine::ForkResult& result) { return ToProto(result); });
  absl::StatusOr<engine::ForkResult> result = co_await engine_->Fork(std::move(spec), call->deadline());
  if (!result.ok()) { co_return result.status(); }
  co_return ToProto(*result);
}

Task<absl::StatusOr<v1::ListSandboxesResponse>> SandboxService::List(CallPtr call, v1::ListSandboxesRequest request) {
  v1::ListSandboxesResponse response;
  for (const engine::SandboxView& view : engine_->ListSandboxes()) {
    if (!request.snapshot_tag().empty() && view.row.snapshot_tag.str() != request.snapshot_tag()) { continue; }
    if (request.state() != v1::SANDBOX_STATE_UNSPECIFIED && ToProto(view.row.state) != request.state()) { continue; }
    if (MatchesLabels(view.row.labels, request.label())) { *response.add_sandboxes() = ToProto(view); }
  }
  co_return response;
}

Task<absl::StatusOr<v1::SandboxInfo>> SandboxService::Get(CallPtr call, v1::GetSandboxRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxId id, SandboxId::Parse(request.id()));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::SandboxView view, engine_->GetSandbox(id));
  co_return ToProto(view);
}

Task<absl::StatusOr<v1::DeleteSandboxResponse>> SandboxService::Delete(CallPtr call, v1::DeleteSandboxRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxId id, SandboxId::Parse(request.id()));
  FORKD_CO_RETURN_IF_ERROR(co_await engine_->DeleteSandbox(id));
  co_return v1::DeleteSandboxResponse();
}

Task<absl::StatusOr<v1::SandboxInfo>> SandboxService::Pause(CallPtr call, v1::PauseSandboxRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxId id, SandboxId::Parse(request.id()));
  absl::StatusOr<engine::SandboxView> view = co_await engine_->PauseSandbox(id, call->deadline());
  if (!view.ok()) { co_return view.status(); }
  co_return ToProto(*view);
}

Task<absl::StatusOr<v1::SandboxInfo>> SandboxService::Resume(CallPtr call, v1::ResumeSandboxRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SandboxId id, SandboxId::Parse(request.id()));
  absl::StatusOr<engine::SandboxView> view = co_await engine_->ResumeSandbox(id, call->deadline());
  if (!view.ok()) { co_return view.status(); }
  co_return ToProto(*view);
}

Task<absl::StatusOr<v1::SnapshotInfo>> SandboxService::Branch(CallPtr call, v1::BranchSandboxRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(engine::BranchSpec spec, ToSpec(request, call->request_id()));
  if (request.has_parent_tag()) {
    FORKD_CO_ASSIGN_OR_RETURN(const engine::SandboxView source, engine_->GetSandbox(spec.source));
    if (source.row.snapshot_tag.str() != request.parent_tag()) {
      co_return InvalidField("parent_tag", absl::StrCat("parent_tag `", request.parent_tag(), "` must equal the source sandbox's snapshot_tag `",
                                                        source.row.snapshot_tag.str(), "`"));
    }
    if (!request.diff() && request.mode() != v1::BRANCH_MODE_DIFF) {
      co_return InvalidField("parent_tag", "parent_tag requires diff mode (set `mode: \"diff\"` or legacy `diff: true`)");
    }
  }
  const bool measured = request.diff() || request.measure_diff() || request.mode() == v1::BRANCH_MODE_DIFF;
  spec.remember = RememberAs(request.idempotency_key(), [measured](const engine::SnapshotView& view) { return BranchReply(view, measured); });
  absl::StatusOr<engine::SnapshotView> view = co_await engine_->Branch(std::move(spec), call->deadline());
  if (!view.ok()) { co_return view.status(); }
  co_return BranchReply(*view, measured);
}

// ---- In the guest ----

Task<absl::StatusOr<v1::PingSandboxResponse>> SandboxService::Ping(CallPtr call, v1::PingSandboxRequest request) {
  const Deadline deadline = call->deadline().Within(kPingDeadline);
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), deadline));
  const auto sent = std::chrono::steady_clock::now();
  absl::StatusOr<guest::agentpb::PingResponse> pong = co_await agent->Ping(deadline);
  if (!pong.ok()) { co_return agent.Explain(pong.status()); }
  v1::PingSandboxResponse response;
  response.set_pong(true);
  response.set_pid(1);
  response.set_agent_lang("c++");
  response.set_agent_version(pong->agent_version());
  response.set_warmup_ready(pong->runner() == guest::agentpb::RUNNER_STATE_READY || pong->runner() == guest::agentpb::RUNNER_STATE_BUSY);
  response.set_hostname(request.id());
  response.set_guest_time_unix_ms(pong->wall_clock_ns() / 1'000'000);
  response.set_round_trip_us(std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - sent).count());
  co_return response;
}

Task<absl::StatusOr<v1::ExecResponse>> SandboxService::RunProgram(CallPtr call, v1::ExecRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(guest::agentpb::ExecStart start, ToAgentExec(request, ""));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), call->deadline()));
  const seconds timeout(request.has_timeout_secs() ? request.timeout_secs() : kDefaultExecTimeoutSecs);
  start.set_timeout_ns(static_cast<uint64_t>(std::chrono::nanoseconds(timeout).count()));
  start.set_stdin_open(!request.stdin().empty());
  const auto max_output = static_cast<std::size_t>(request.has_max_output_bytes() ? request.max_output_bytes() : kDefaultMaxOutputBytes);
  absl::StatusOr<ExecCollected> result =
      co_await CollectExec(call, agent.client(), std::move(start), request.stdin(), max_output, Deadline::In(timeout + kGrace));
  if (!result.ok()) { co_return agent.Explain(result.status()); }
  v1::ExecResponse response;
  bool changed = false;
  response.set_stdout(ToUtf8(result->stdout_data, &changed));
  if (changed) { response.set_stdout_raw(result->stdout_data); }
  response.set_stderr(ToUtf8(result->stderr_data, &changed));
  if (changed) { response.set_stderr_raw(result->stderr_data); }
  response.set_stdout_truncated(result->stdout_truncated);
  response.set_stderr_truncated(result->stderr_truncated);
  FillExecEnd(result->end, &response);
  co_return response;
}

Task<absl::Status> SandboxService::StreamProgram(CallPtr call, std::shared_ptr<ExecPeer> peer) {
  std::optional<v1::ExecStreamRequest> first = co_await peer->Read();
  if (!first.has_value() || !first->has_start()) { co_return InvalidField("start", "must come first"); }
  FORKD_CO_RETURN_IF_ERROR(ValidateRequest(*first));
  FORKD_CO_ASSIGN_OR_RETURN(guest::agentpb::ExecStart start, ToAgentExec(first->start(), "start."));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(first->start().id(), call->deadline()));
  start.set_timeout_ns(static_cast<uint64_t>(std::chrono::nanoseconds(seconds(first->start().timeout_secs())).count()));
  start.set_stdin_open(true);
  start.set_tty(first->start().tty());
  start.set_rows(static_cast<uint32_t>(first->start().size().rows()));
  start.set_cols(static_cast<uint32_t>(first->start().size().columns()));
  start.set_detached(first->start().detach());
  co_return agent.Explain(co_await RelayExec(call, agent.client(), std::move(start), std::move(peer)));
}

Task<absl::StatusOr<v1::EvalResponse>> SandboxService::Evaluate(CallPtr call, v1::EvalRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), call->deadline()));
  const seconds timeout(request.has_timeout_secs() ? request.timeout_secs() : kDefaultEvalTimeoutSecs);
  guest::agentpb::EvalRequest eval;
  eval.set_code(std::move(*request.mutable_code()));
  eval.set_timeout_ns(static_cast<uint64_t>(std::chrono::nanoseconds(timeout).count()));
  absl::StatusOr<guest::agentpb::EvalResponse> result = co_await agent->Eval(std::move(eval), Deadline::In(timeout + kGrace));
  if (!result.ok()) { co_return agent.Explain(result.status()); }
  v1::EvalResponse response;
  bool changed = false;
  if (result->has_value()) { response.set_result(ToUtf8(result->value(), &changed)); }
  if (result->has_error()) {
    response.set_error(ToUtf8(result->error(), &changed));
    response.set_exit_code(1);
  }
  response.set_stdout(ToUtf8(result->stdout_data(), &changed));
  response.set_stderr(ToUtf8(result->stderr_data(), &changed));
  response.set_traceback(ToUtf8(result->traceback(), &changed));
  response.set_runner_restarted(result->runner_restarted());
  response.set_truncated(result->stdout_truncated() || result->stderr_truncated() || result->value_truncated());
  response.set_duration_ms(static_cast<int64_t>(result->duration_ns() / 1'000'000));
  response.set_timed_out(result->timed_out());
  co_return response;
}

Task<absl::Status> SandboxService::StreamFileOut(CallPtr call, v1::ReadFileRequest request, std::shared_ptr<ReadPeer> peer) {
  FORKD_CO_RETURN_IF_ERROR(ValidateRequest(request));
  FORKD_CO_RETURN_IF_ERROR(CheckGuestPath(request.path(), "path"));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), call->deadline()));
  guest::agentpb::ReadFileStart start;
  start.set_path(request.path());
  start.set_offset(static_cast<uint64_t>(request.offset()));
  start.set_limit_bytes(static_cast<uint64_t>(request.length()));
  const bool nothing_wanted = request.has_length() && request.length() == 0;
  absl::StatusOr<std::shared_ptr<guest::FileReader>> reader = co_await agent->ReadFile(std::move(start), call->deadline().Within(kFileStepDeadline));
  if (!reader.ok()) { co_return agent.Explain(reader.status()); }
  v1::ReadFileResponse head;
  *head.mutable_info() = ToProto((*reader)->info(), request.path());
  bool wanted = co_await peer->Write(std::move(head));
  while (wanted && !nothing_wanted) {
    absl::StatusOr<std::string> data = co_await (*reader)->Next(call->deadline().Within(kFileStepDeadline));
    if (!data.ok()) { co_return agent.Explain(data.status()); }
    if (data->empty()) { break; }
    v1::ReadFileResponse piece;
    piece.set_data(*std::move(data));
    wanted = co_await peer->Write(std::move(piece));
  }
  if (!wanted) { co_return Error(absl::StatusCode::kCancelled, Reason::kCancelled, "the client went away"); }
  co_return absl::OkStatus();
}

Task<absl::Status> SandboxService::StreamFileIn(CallPtr call, v1::FileInfo* response, std::shared_ptr<WritePeer> peer) {
  std::optional<v1::WriteFileRequest> message = co_await peer->Read();
  if (!message.has_value()) { co_return InvalidField("id", "is required: the stream ended before its first message"); }
  FORKD_CO_RETURN_IF_ERROR(ValidateRequest(*message));
  const std::string path = message->path();
  FORKD_CO_RETURN_IF_ERROR(CheckGuestPath(path, "path"));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(message->id(), call->deadline()));
  guest::agentpb::WriteFileStart start;
  start.set_path(path);
  if (message->has_mode()) { start.set_mode(static_cast<uint32_t>(message->mode())); }
  start.set_create_parents(message->create_parents());
  absl::StatusOr<std::shared_ptr<guest::FileWriter>> writer = co_await agent->WriteFile(std::move(start), call->deadline().Within(kFileStepDeadline));
  if (!writer.ok()) { co_return agent.Explain(writer.status()); }
  for (bool first = true; message.has_value(); first = false) {
    if (!first && (!message->id().empty() || !message->path().empty() || message->has_mode() || message->create_parents())) {
      co_return InvalidField("path", "id, path, mode and create_parents belong into the first message alone");
    }
    if (message->data().size() > (1u << 20)) { co_return InvalidField("data", "has more than 1048576 bytes in one message"); }
    if (!message->data().empty()) {
      const absl::Status written = co_await (*writer)->Write(std::move(*message->mutable_data()), call->deadline().Within(kFileStepDeadline));
      if (!written.ok()) { co_return agent.Explain(written); }
    }
    message = co_await peer->Read();
  }
  // A client that went away in mid-file is not one that has finished: the path stays as it was.
  if (!co_await peer->ConfirmOpen()) { co_return Error(absl::StatusCode::kCancelled, Reason::kCancelled, "the client went away"); }
  absl::StatusOr<guest::agentpb::FileInfo> info = co_await (*writer)->Commit(call->deadline().Within(kFileStepDeadline));
  if (!info.ok()) { co_return agent.Explain(info.status()); }
  *response = ToProto(*info, path);
  co_return absl::OkStatus();
}

Task<absl::StatusOr<v1::ListDirectoryResponse>> SandboxService::ListFiles(CallPtr call, v1::ListDirectoryRequest request) {
  FORKD_CO_RETURN_IF_ERROR(CheckGuestPath(request.path(), "path"));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), call->deadline()));
  guest::agentpb::ListDirectoryRequest list;
  list.set_path(request.path());
  absl::StatusOr<guest::agentpb::ListDirectoryResponse> listed = co_await agent->ListDirectory(std::move(list), call->deadline().Within(kFileStepDeadline));
  if (!listed.ok()) { co_return agent.Explain(listed.status()); }
  v1::ListDirectoryResponse response;
  const std::string folder = request.path() == "/" ? "" : request.path();
  for (const guest::agentpb::FileInfo& entry : listed->entries()) { *response.add_entries() = ToProto(entry, absl::StrCat(folder, "/", entry.name())); }
  response.set_truncated(listed->truncated());
  co_return response;
}

Task<absl::StatusOr<v1::FileInfo>> SandboxService::Stat(CallPtr call, v1::StatFileRequest request) {
  FORKD_CO_RETURN_IF_ERROR(CheckGuestPath(request.path(), "path"));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), call->deadline()));
  guest::agentpb::StatFileRequest stat;
  stat.set_path(request.path());
  stat.set_follow_symlink(request.follow());
  absl::StatusOr<guest::agentpb::FileInfo> info = co_await agent->StatFile(std::move(stat), call->deadline().Within(kFileStepDeadline));
  if (!info.ok()) { co_return agent.Explain(info.status()); }
  co_return ToProto(*info, request.path());
}

Task<absl::StatusOr<v1::RemoveFileResponse>> SandboxService::Remove(CallPtr call, v1::RemoveFileRequest request) {
  FORKD_CO_RETURN_IF_ERROR(CheckGuestPath(request.path(), "path"));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::ActiveAgent agent, co_await AgentOf(request.id(), call->deadline()));
  guest::agentpb::RemoveFileRequest remove;
  remove.set_path(request.path());
  remove.set_recursive(request.recursive());
  const absl::Status removed = co_await agent->RemoveFile(std::move(remove), call->deadline().Within(kFileStepDeadline));
  if (!removed.ok()) { co_return agent.Explain(removed); }
  co_return v1::RemoveFileResponse();
}

// ---- Events ----

Task<absl::Status> SandboxService::StreamEvents(CallPtr call, v1::WatchSandboxesRequest request, std::shared_ptr<WatchPeer> peer) {
  FORKD_CO_RETURN_IF_ERROR(ValidateRequest(request));
  const std::shared_ptr<engine::EventQueue> queue = engine_->Watch(request.include_current());
  call->OnCancel([weak = std::weak_ptr<engine::EventQueue>(queue)] {
    if (const std::shared_ptr<engine::EventQueue> alive = weak.lock()) { alive->Close(); }
  });
  while (true) {
    // Watching has no end of its own: only a deadline that the client set counts, and cancels the call.
    std::optional<engine::SandboxEvent> event = co_await queue->Next(Deadline::Never());
    if (!event.has_value()) { break; }
    if (!request.id().empty() && event->sandbox.row.id.str() != request.id()) { continue; }
    if (!request.snapshot_tag().empty() && event->sandbox.row.snapshot_tag.str() != request.snapshot_tag()) { continue; }
    v1::WatchSandboxesResponse response;
    switch (event->kind) {
      case engine::SandboxEventKind::kCurrent: response.set_type(v1::SANDBOX_EVENT_TYPE_CURRENT); break;
      case engine::SandboxEventKind::kCreated: response.set_type(v1::SANDBOX_EVENT_TYPE_CREATED); break;
      case engine::SandboxEventKind::kChanged: response.set_type(v1::SANDBOX_EVENT_TYPE_CHANGED); break;
      case engine::SandboxEventKind::kDeleted: response.set_type(v1::SANDBOX_EVENT_TYPE_DELETED); break;
    }
    *response.mutable_sandbox() = ToProto(event->sandbox);
    response.set_at_unix_ms(event->at_unix_ms);
    response.set_sequence(event->sequence);
    if (!co_await peer->Write(std::move(response))) { break; }
  }
  if (queue->overflowed()) {
    co_return Error(absl::StatusCode::kResourceExhausted, Reason::kLimitReached,
                    absl::StrCat("the watcher fell ", engine::EventQueue::kMaxQueued, " events behind: list, then watch again"));
  }
  if (call->cancelled()) { co_return Error(absl::StatusCode::kCancelled, Reason::kCancelled, "the client went away"); }
  co_return Error(absl::StatusCode::kUnavailable, Reason::kShuttingDown, "the daemon is stopping");
}

}  // namespace forkd::server
