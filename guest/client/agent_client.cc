#include "guest/client/agent_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/runtime.h"
#include "base/status_macros.h"
#include "guest/client/agent_connection.h"
#include "guest/client/guest_status.h"

namespace forkd::guest {
namespace {

using ConnectionPtr = std::shared_ptr<AgentConnection>;

constexpr std::size_t kChunkBytes = 64 * 1024;
// ListDirectory's limit (agent.proto), and some.
constexpr int kMaxResponseFields = 10'100;

template <typename Response>
Task<absl::StatusOr<Response>> Unary(ConnectionPtr connection, const char* method, std::string request, Deadline deadline) {
  auto state = std::make_shared<UnaryState>(connection->executor());
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Begin(connection, state, method, std::move(request), 0, deadline));
  co_await state->readable.Wait(deadline);
  if (!state->done) {
    state->abandoned = true;
    co_return DeadlineError(method);
  }
  if (!state->status.ok()) { co_return state->status; }
  Response response;
  if (!HasFewFields(state->payload, kMaxResponseFields) || !response.ParseFromString(state->payload)) {
    const absl::Status broken = ProtocolError(absl::StrCat("malformed answer to ", method));
    connection->Close(broken, true);
    co_return broken;
  }
  co_return response;
}

template <typename Response>
Task<absl::Status> UnaryStatus(ConnectionPtr connection, const char* method, std::string request, Deadline deadline) {
  const absl::StatusOr<Response> response = co_await Unary<Response>(connection, method, std::move(request), deadline);
  co_return response.status();
}

std::string ExecMessage(const agentpb::ExecInput& input) { return input.SerializeAsString(); }

Task<absl::StatusOr<ExecEvent>> NextEvent(ConnectionPtr connection, std::shared_ptr<ExecState> state, Deadline deadline) {
  while (true) {
    ExecEvent event;
    if (state->started.has_value()) {
      event.kind = ExecEvent::Kind::kStarted;
      event.started = *std::exchange(state->started, std::nullopt);
      co_return event;
    }
    const int which = state->out[state->first].empty() ? 1 - state->first : state->first;
    if (!state->out[which].empty()) {
      event.kind = which == 0 ? ExecEvent::Kind::kStdout : ExecEvent::Kind::kStderr;
      event.data.swap(state->out[which]);
      state->first = 1 - which;
      state->taken += event.data.size();
      // In steps, so that a trickle of output does not double the number of messages.
      if (state->taken >= state->window_size / 4 && !state->end_seen) {
        agentpb::ExecInput input;
        input.set_output_window_bytes(static_cast<uint32_t>(state->taken));
        state->window += std::exchange(state->taken, 0);
        connection->SendNow(*state, ExecMessage(input));
      }
      co_return event;
    }
    if (state->end.has_value()) {
      event.kind = ExecEvent::Kind::kEnd;
      event.end = *std::exchange(state->end, std::nullopt);
      co_return event;
    }
    if (state->end_seen) { co_return absl::OutOfRangeError("the program's end was delivered already"); }
    if (state->done) {
      if (!state->status.ok()) { co_return state->status; }
      const absl::Status broken = ProtocolError("a program's stream closed without its end");
      connection->Close(broken, true);
      co_return broken;
    }
    state->readable.Reset();
    const bool came = co_await state->readable.Wait(deadline);
    if (!came) { co_return DeadlineError("Exec"); }
  }
}

Task<absl::Status> SendInput(ConnectionPtr connection, std::shared_ptr<ExecState> state, agentpb::ExecInput input, Deadline deadline) {
  if (state->done) { co_return state->status; }
  co_return co_await AgentConnection::Send(connection, state, ExecMessage(input), deadline);
}

Task<absl::Status> SendStdin(ConnectionPtr connection, std::shared_ptr<ExecState> state, std::string data, Deadline deadline) {
  std::size_t sent = 0;
  while (sent < data.size()) {
    if (state->done) { co_return state->status; }
    if (state->stdin_closed || state->end_seen) { co_return absl::OkStatus(); }
    if (state->stdin_window == 0) {
      state->writable.Reset();
      const bool room = co_await state->writable.Wait(deadline);
      if (!room) { co_return DeadlineError("WriteStdin"); }
      continue;
    }
    const std::size_t take = std::min<std::size_t>({kChunkBytes, data.size() - sent, state->stdin_window});
    agentpb::ExecInput input;
    input.set_stdin_data(data.substr(sent, take));
    state->stdin_window -= take;
    FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Send(connection, state, ExecMessage(input), deadline));
    sent += take;
  }
  co_return absl::OkStatus();
}

Task<absl::StatusOr<std::shared_ptr<ExecStream>>> Start(ConnectionPtr connection, agentpb::ExecStart start, Deadline deadline) {
  auto state = std::make_shared<ExecState>(connection->executor());
  if (start.output_window_bytes() > 0) { state->window = state->window_size = start.output_window_bytes(); }
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Begin(connection, state, "Exec", "", ttrpc::kFlagRemoteOpen, deadline));
  agentpb::ExecInput input;
  *input.mutable_start() = std::move(start);
  const std::string message = ExecMessage(input);
  auto stream = std::make_shared<ExecStream>(connection, state);
  if (message.size() > ttrpc::kMaxDataBytes / 2) { co_return InvalidField("argv", "argv and env are more than 2 MiB"); }
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Send(connection, state, message, deadline));
  co_return stream;
}

Task<void> FeedStdin(std::shared_ptr<ExecStream> stream, std::string data, Deadline deadline) {
  // An error here shows in the run's own result: the connection is gone, or the program is.
  const absl::Status written = co_await stream->WriteStdin(std::move(data), deadline);
  if (written.ok()) { (void)co_await stream->CloseStdin(deadline); }
}

void Keep(const std::string& data, std::size_t limit, std::string* kept, bool* truncated) {
  const std::size_t take = std::min(data.size(), limit - std::min(limit, kept->size()));
  kept->append(data, 0, take);
  if (take < data.size()) { *truncated = true; }
}

Task<absl::StatusOr<ExecResult>> RunToEnd(ConnectionPtr connection, agentpb::ExecStart start, std::size_t max_output_bytes, Deadline deadline,
                                          std::string stdin_data) {
  if (!stdin_data.empty()) { start.set_stdin_open(true); }
  FORKD_CO_ASSIGN_OR_RETURN(const std::shared_ptr<ExecStream> stream, co_await Start(connection, std::move(start), deadline));
  if (!stdin_data.empty()) { SpawnOn(connection->executor(), FeedStdin(stream, std::move(stdin_data), deadline)); }
  ExecResult result;
  while (true) {
    absl::StatusOr<ExecEvent> event = co_await stream->Next(deadline);
    if (!event.ok()) {
      stream->Cancel();
      co_return event.status();
    }
    switch (event->kind) {
      case ExecEvent::Kind::kStarted: break;
      case ExecEvent::Kind::kStdout: Keep(event->data, max_output_bytes, &result.stdout_data, &result.stdout_truncated); break;
      case ExecEvent::Kind::kStderr: Keep(event->data, max_output_bytes, &result.stderr_data, &result.stderr_truncated); break;
      case ExecEvent::Kind::kEnd: result.end = std::move(event->end); co_return result;
    }
  }
}

Task<absl::StatusOr<std::shared_ptr<FileReader>>> OpenForReading(ConnectionPtr connection, agentpb::ReadFileStart start, Deadline deadline) {
  auto state = std::make_shared<ReadState>(connection->executor());
  if (start.window_bytes() > 0) { state->window = state->window_size = start.window_bytes(); }
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Begin(connection, state, "ReadFile", "", ttrpc::kFlagRemoteOpen, deadline));
  agentpb::ReadFileInput input;
  *input.mutable_start() = std::move(start);
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Send(connection, state, input.SerializeAsString(), deadline));
  while (!state->info.has_value() && !state->done) {
    state->readable.Reset();
    const bool came = co_await state->readable.Wait(deadline);
    if (!came) {
      FileReader closing(connection, state, {});
      co_return DeadlineError("ReadFile");
    }
  }
  if (!state->info.has_value()) { co_return state->status.ok() ? ProtocolError("a file's stream closed without a word") : state->status; }
  co_return std::make_shared<FileReader>(connection, state, *state->info);
}

Task<absl::StatusOr<std::string>> NextPiece(ConnectionPtr connection, std::shared_ptr<ReadState> state, Deadline deadline) {
  while (state->data.empty()) {
    if (state->done) {
      if (!state->status.ok()) { co_return state->status; }
      co_return std::string();
    }
    state->readable.Reset();
    const bool came = co_await state->readable.Wait(deadline);
    if (!came) { co_return DeadlineError("ReadFile"); }
  }
  std::string piece = state->data.substr(0, kChunkBytes);
  state->data.erase(0, piece.size());
  state->taken += piece.size();
  if (state->taken >= state->window_size / 4) {
    agentpb::ReadFileInput input;
    input.set_window_bytes(static_cast<uint32_t>(state->taken));
    state->window += std::exchange(state->taken, 0);
    connection->SendNow(*state, input.SerializeAsString());
  }
  co_return piece;
}

Task<absl::StatusOr<std::shared_ptr<FileWriter>>> OpenForWriting(ConnectionPtr connection, agentpb::WriteFileStart start, Deadline deadline) {
  auto state = std::make_shared<WriteState>(connection->executor());
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Begin(connection, state, "WriteFile", "", ttrpc::kFlagRemoteOpen, deadline));
  auto writer = std::make_shared<FileWriter>(connection, state);
  agentpb::WriteFileInput input;
  *input.mutable_start() = std::move(start);
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Send(connection, state, input.SerializeAsString(), deadline));
  co_return writer;
}

Task<absl::Status> WritePieces(ConnectionPtr connection, std::shared_ptr<WriteState> state, std::string data, Deadline deadline) {
  std::size_t sent = 0;
  while (sent < data.size()) {
    if (state->done) { co_return state->status.ok() ? ProtocolError("a file's stream closed before its end") : state->status; }
    if (state->window == 0) {
      state->writable.Reset();
      const bool room = co_await state->writable.Wait(deadline);
      if (!room) { co_return DeadlineError("WriteFile"); }
      continue;
    }
    const std::size_t take = std::min<std::size_t>({kChunkBytes, data.size() - sent, state->window});
    agentpb::WriteFileInput input;
    input.set_data(data.substr(sent, take));
    state->window -= take;
    FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Send(connection, state, input.SerializeAsString(), deadline));
    sent += take;
  }
  co_return absl::OkStatus();
}

Task<absl::StatusOr<agentpb::FileInfo>> CommitFile(ConnectionPtr connection, std::shared_ptr<WriteState> state, Deadline deadline) {
  agentpb::WriteFileInput input;
  input.set_commit(true);
  FORKD_CO_RETURN_IF_ERROR(co_await AgentConnection::Send(connection, state, input.SerializeAsString(), deadline));
  while (!state->done) {
    state->readable.Reset();
    const bool came = co_await state->readable.Wait(deadline);
    if (!came) { co_return DeadlineError("WriteFile"); }
  }
  if (!state->status.ok()) { co_return state->status; }
  if (!state->info.has_value()) { co_return ProtocolError("a file's stream closed without a word"); }
  co_return *state->info;
}

Task<absl::StatusOr<agentpb::FileInfo>> Stat(ConnectionPtr connection, std::string request, Deadline deadline) {
  FORKD_CO_ASSIGN_OR_RETURN(agentpb::StatFileResponse response, co_await Unary<agentpb::StatFileResponse>(connection, "StatFile", std::move(request), deadline));
  co_return std::move(*response.mutable_info());
}

Task<absl::StatusOr<std::shared_ptr<AgentClient>>> MakeClient(UniqueFd socket, ttrpc::SyncToken token, Deadline deadline) {
  FORKD_CO_ASSIGN_OR_RETURN(ConnectionPtr connection, co_await AgentConnection::Open(std::move(socket), token, deadline));
  co_return std::make_shared<AgentClient>(std::move(connection));
}

}  // namespace

ExecStream::ExecStream(std::shared_ptr<AgentConnection> connection, std::shared_ptr<ExecState> state)
    : connection_(std::move(connection)), state_(std::move(state)) {}

ExecStream::~ExecStream() { Cancel(); }

Task<absl::StatusOr<ExecEvent>> ExecStream::Next(Deadline deadline) { return NextEvent(connection_, state_, deadline); }

Task<absl::Status> ExecStream::WriteStdin(std::string data, Deadline deadline) {
  return SendStdin(connection_, state_, std::move(data), deadline);
}

Task<absl::Status> ExecStream::CloseStdin(Deadline deadline) {
  agentpb::ExecInput input;
  input.set_close_stdin(true);
  return SendInput(connection_, state_, std::move(input), deadline);
}

Task<absl::Status> ExecStream::Resize(uint32_t rows, uint32_t cols, Deadline deadline) {
  agentpb::ExecInput input;
  input.mutable_resize()->set_rows(rows);
  input.mutable_resize()->set_cols(cols);
  return SendInput(connection_, state_, std::move(input), deadline);
}

Task<absl::Status> ExecStream::Signal(int32_t signal, Deadline deadline) {
  agentpb::ExecInput input;
  input.set_signal(signal);
  return SendInput(connection_, state_, std::move(input), deadline);
}

void ExecStream::Cancel() {
  if (state_->abandoned) { return; }
  state_->abandoned = true;
  for (std::string& out : state_->out) { std::string().swap(out); }
  if (state_->done || state_->end_seen) { return; }
  agentpb::ExecInput input;
  input.set_cancel(true);
  connection_->SendNow(*state_, ExecMessage(input));
}

FileReader::FileReader(std::shared_ptr<AgentConnection> connection, std::shared_ptr<ReadState> state, agentpb::FileInfo info)
    : connection_(std::move(connection)), state_(std::move(state)), info_(std::move(info)) {}

FileReader::~FileReader() {
  state_->abandoned = true;
  agentpb::ReadFileInput input;
  input.set_cancel(true);
  connection_->SendNow(*state_, input.SerializeAsString());
}

Task<absl::StatusOr<std::string>> FileReader::Next(Deadline deadline) { return NextPiece(connection_, state_, deadline); }

FileWriter::FileWriter(std::shared_ptr<AgentConnection> connection, std::shared_ptr<WriteState> state)
    : connection_(std::move(connection)), state_(std::move(state)) {}

FileWriter::~FileWriter() {
  state_->abandoned = true;
  agentpb::WriteFileInput input;
  input.set_cancel(true);
  connection_->SendNow(*state_, input.SerializeAsString());
}

Task<absl::Status> FileWriter::Write(std::string data, Deadline deadline) { return WritePieces(connection_, state_, std::move(data), deadline); }

Task<absl::StatusOr<agentpb::FileInfo>> FileWriter::Commit(Deadline deadline) { return CommitFile(connection_, state_, deadline); }

Task<absl::StatusOr<std::shared_ptr<AgentClient>>> AgentClient::Connect(UniqueFd socket, ttrpc::SyncToken token, Deadline deadline) {
  return MakeClient(std::move(socket), token, deadline);
}

AgentClient::AgentClient(std::shared_ptr<AgentConnection> connection) : connection_(std::move(connection)) {}

AgentClient::~AgentClient() { Close(); }

void AgentClient::Close() {
  connection_->Close(Error(absl::StatusCode::kCancelled, Reason::kCancelled, "the connection to the guest's agent was closed"), false);
}

bool AgentClient::closed() const { return connection_->closed(); }
absl::Status AgentClient::status() const { return connection_->closed() ? connection_->status() : absl::OkStatus(); }
void AgentClient::OnClose(absl::AnyInvocable<void(const absl::Status&)> callback) { connection_->OnClose(std::move(callback)); }

Task<absl::StatusOr<agentpb::PingResponse>> AgentClient::Ping(Deadline deadline) {
  return Unary<agentpb::PingResponse>(connection_, "Ping", agentpb::PingRequest().SerializeAsString(), deadline);
}

Task<absl::StatusOr<agentpb::PrepareResponse>> AgentClient::Prepare(agentpb::PrepareRequest request, Deadline deadline) {
  return Unary<agentpb::PrepareResponse>(connection_, "Prepare", request.SerializeAsString(), deadline);
}

Task<absl::StatusOr<agentpb::EvalResponse>> AgentClient::Eval(agentpb::EvalRequest request, Deadline deadline) {
  return Unary<agentpb::EvalResponse>(connection_, "Eval", request.SerializeAsString(), deadline);
}

Task<absl::StatusOr<agentpb::WarmupResponse>> AgentClient::Warmup(agentpb::WarmupRequest request, Deadline deadline) {
  return Unary<agentpb::WarmupResponse>(connection_, "Warmup", request.SerializeAsString(), deadline);
}

Task<absl::StatusOr<ExecResult>> AgentClient::Exec(agentpb::ExecStart start, std::size_t max_output_bytes, Deadline deadline, std::string stdin_data) {
  return RunToEnd(connection_, std::move(start), max_output_bytes, deadline, std::move(stdin_data));
}

Task<absl::StatusOr<std::shared_ptr<ExecStream>>> AgentClient::StartExec(agentpb::ExecStart start, Deadline deadline) {
  return Start(connection_, std::move(start), deadline);
}

Task<absl::Status> AgentClient::SignalExec(uint64_t exec_id, int32_t signal, Deadline deadline) {
  agentpb::SignalExecRequest request;
  request.set_exec_id(exec_id);
  request.set_signal(signal);
  return UnaryStatus<agentpb::SignalExecResponse>(connection_, "SignalExec", request.SerializeAsString(), deadline);
}

Task<absl::StatusOr<std::shared_ptr<FileReader>>> AgentClient::ReadFile(agentpb::ReadFileStart start, Deadline deadline) {
  return OpenForReading(connection_, std::move(start), deadline);
}

Task<absl::StatusOr<std::shared_ptr<FileWriter>>> AgentClient::WriteFile(agentpb::WriteFileStart start, Deadline deadline) {
  return OpenForWriting(connection_, std::move(start), deadline);
}

Task<absl::StatusOr<agentpb::ListDirectoryResponse>> AgentClient::ListDirectory(agentpb::ListDirectoryRequest request, Deadline deadline) {
  return Unary<agentpb::ListDirectoryResponse>(connection_, "ListDirectory", request.SerializeAsString(), deadline);
}

Task<absl::StatusOr<agentpb::FileInfo>> AgentClient::StatFile(agentpb::StatFileRequest request, Deadline deadline) {
  return Stat(connection_, request.SerializeAsString(), deadline);
}

Task<absl::Status> AgentClient::RemoveFile(agentpb::RemoveFileRequest request, Deadline deadline) {
  return UnaryStatus<agentpb::RemoveFileResponse>(connection_, "RemoveFile", request.SerializeAsString(), deadline);
}

Task<absl::Status> AgentClient::Sync(Deadline deadline) {
  return UnaryStatus<agentpb::SyncResponse>(connection_, "Sync", agentpb::SyncRequest().SerializeAsString(), deadline);
}

}  // namespace forkd::guest
