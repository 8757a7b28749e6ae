#include "server/exec_stream.h"

#include <algorithm>
#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <utility>

#include "base/async_event.h"
#include "base/error.h"
#include "base/runtime.h"
#include "base/status_macros.h"
#include "server/convert.h"
#include "server/validate.h"

namespace forkd::server {
namespace {

using guest::ExecEvent;
using guest::ExecStream;
using ExecPeer = CallBridge::Stream<v1::ExecStreamRequest, v1::ExecStreamResponse>;

constexpr std::chrono::seconds kStartDeadline{30};
// A program may rightly not read its stdin for as long as it runs; what bounds the wait is the end of the stream.
constexpr std::chrono::hours kStdinDeadline{24 * 7};

absl::Status ClientGone() { return Error(absl::StatusCode::kCancelled, Reason::kCancelled, "the client went away; its program was killed"); }

void KillWhenCancelled(Call& call, const std::shared_ptr<ExecStream>& stream) {
  call.OnCancel([weak = std::weak_ptr<ExecStream>(stream)] {
    if (const std::shared_ptr<ExecStream> alive = weak.lock()) { alive->Cancel(); }
  });
}

// Appends what fits below `limit`.
void Keep(std::string& kept, const std::string& data, std::size_t limit, bool& truncated) {
  const std::size_t room = limit - std::min(limit, kept.size());
  kept.append(data, 0, room);
  if (data.size() > room) { truncated = true; }
}

Task<void> FeedStdin(std::shared_ptr<ExecStream> stream, std::string data) {
  // A program that ends without reading its stdin is no error.
  if (const absl::Status written = co_await stream->WriteStdin(std::move(data), Deadline::In(kStdinDeadline)); !written.ok()) { co_return; }
  static_cast<void>(co_await stream->CloseStdin(Deadline::In(kStartDeadline)));
}

// What one message of the client asks for.
Task<absl::Status> Obey(std::shared_ptr<ExecStream> stream, v1::ExecStreamRequest request) {
  FORKD_CO_RETURN_IF_ERROR(ValidateRequest(request));
  switch (request.message_case()) {
    case v1::ExecStreamRequest::kStdin: co_return co_await stream->WriteStdin(std::move(*request.mutable_stdin()), Deadline::In(kStdinDeadline));
    case v1::ExecStreamRequest::kResize:
      co_return co_await stream->Resize(static_cast<uint32_t>(request.resize().rows()), static_cast<uint32_t>(request.resize().columns()),
                                        Deadline::In(kStartDeadline));
    case v1::ExecStreamRequest::kSignal: co_return co_await stream->Signal(request.signal(), Deadline::In(kStartDeadline));
    case v1::ExecStreamRequest::kCloseStdin: co_return co_await stream->CloseStdin(Deadline::In(kStartDeadline));
    case v1::ExecStreamRequest::kStart: co_return InvalidField("start", "may come only once, first");
    case v1::ExecStreamRequest::MESSAGE_NOT_SET: co_return InvalidField("message", "is not set");
  }
  co_return absl::OkStatus();
}

struct Input {
  explicit Input(Executor executor) : ended(std::move(executor)) {}
  absl::Status status;
  AsyncEvent ended;
};

Task<void> RelayInput(std::shared_ptr<ExecStream> stream, std::shared_ptr<ExecPeer> peer, std::shared_ptr<Input> input) {
  while (input->status.ok()) {
    std::optional<v1::ExecStreamRequest> request = co_await peer->Read();
    if (!request.has_value()) {
      // Half-closed: no more stdin. A client that is gone cancels by itself.
      static_cast<void>(co_await stream->CloseStdin(Deadline::In(kStartDeadline)));
      break;
    }
    absl::Status obeyed = co_await Obey(stream, *std::move(request));
    if (absl::IsInvalidArgument(obeyed)) {
      input->status = std::move(obeyed);
      stream->Cancel();
    } else if (!obeyed.ok()) {
      break;  // The program or its channel has ended; the output side says how.
    }
  }
  input->ended.Set();
}

}  // namespace

Task<absl::StatusOr<ExecCollected>> CollectExec(std::shared_ptr<Call> call, std::shared_ptr<guest::AgentClient> agent,
                                                guest::agentpb::ExecStart start, std::string stdin_data, std::size_t max_output, Deadline deadline) {
  absl::StatusOr<std::shared_ptr<ExecStream>> stream = co_await agent->StartExec(std::move(start), deadline);
  if (!stream.ok()) { co_return stream.status(); }
  KillWhenCancelled(*call, *stream);
  if (!stdin_data.empty()) { SpawnOn(co_await boost::asio::this_coro::executor, FeedStdin(*stream, std::move(stdin_data))); }
  ExecCollected result;
  while (true) {
    absl::StatusOr<ExecEvent> event = co_await (*stream)->Next(deadline);
    if (call->cancelled()) { co_return ClientGone(); }
    if (!event.ok()) { co_return event.status(); }
    switch (event->kind) {
      case ExecEvent::Kind::kStarted: break;
      case ExecEvent::Kind::kStdout: Keep(result.stdout_data, event->data, max_output, result.stdout_truncated); break;
      case ExecEvent::Kind::kStderr: Keep(result.stderr_data, event->data, max_output, result.stderr_truncated); break;
      case ExecEvent::Kind::kEnd: result.end = std::move(event->end); co_return result;
    }
  }
}

Task<absl::Status> RelayExec(std::shared_ptr<Call> call, std::shared_ptr<guest::AgentClient> agent, guest::agentpb::ExecStart start,
                             std::shared_ptr<ExecPeer> peer) {
  absl::StatusOr<std::shared_ptr<ExecStream>> started = co_await agent->StartExec(std::move(start), Deadline::In(kStartDeadline));
  if (!started.ok()) { co_return started.status(); }
  const std::shared_ptr<ExecStream> stream = *std::move(started);
  KillWhenCancelled(*call, stream);
  const Executor executor = co_await boost::asio::this_coro::executor;
  const auto input = std::make_shared<Input>(executor);
  SpawnOn(executor, RelayInput(stream, peer, input));
  while (true) {
    absl::StatusOr<ExecEvent> event = co_await stream->Next(Deadline::Never());
    if (call->cancelled()) { co_return ClientGone(); }
    if (!input->status.ok()) { co_return input->status; }
    if (!event.ok()) { co_return event.status(); }
    v1::ExecStreamResponse response;
    switch (event->kind) {
      case ExecEvent::Kind::kStarted: response.mutable_started()->set_pid(event->started.pid()); break;
      case ExecEvent::Kind::kStdout: response.set_stdout(std::move(event->data)); break;
      case ExecEvent::Kind::kStderr: response.set_stderr(std::move(event->data)); break;
      case ExecEvent::Kind::kEnd: FillExecEnd(event->end, response.mutable_exit()); break;
    }
    const bool ended = response.has_exit();
    // The guest gets window for more only by Next, so a client that does not read stops the program and not our memory.
    if (!co_await peer->Write(std::move(response))) {
      stream->Cancel();
      co_return ClientGone();
    }
    if (ended) { co_return absl::OkStatus(); }
  }
}

}  // namespace forkd::server
