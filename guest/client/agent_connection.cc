#include "guest/client/agent_connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/runtime.h"
#include "guest/client/guest_status.h"
#include "guest/ttrpc/ttrpc.pb.h"

namespace forkd::guest {
namespace {

namespace pb = ::forkd::agent::v1;
constexpr auto kNoThrow = boost::asio::as_tuple(boost::asio::use_awaitable);
constexpr const char* kService = "forkd.agent.v1.AgentService";

// Callers wait beyond the first; the second is reached only by what may not wait (window, cancellation) for a guest that never reads.
constexpr std::size_t kQueueRoomBytes = 1u << 20;
constexpr std::size_t kMaxQueuedBytes = 8u << 20;
constexpr std::size_t kMaxStreams = 1024;

}  // namespace

absl::Status ProtocolError(absl::string_view what) {
  return Error(absl::StatusCode::kUnavailable, Reason::kAgentProtocol, absl::StrCat("the guest's agent broke its protocol: ", what));
}

absl::Status DeadlineError(absl::string_view what) {
  return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, absl::StrCat(what, ": the guest's agent did not answer in time"));
}

absl::Status UnaryState::OnMessage(const std::string&) { return ProtocolError("data on a unary call"); }

absl::Status ExecState::OnMessage(const std::string& data) {
  pb::ExecOutput message;
  if (!message.ParseFromString(data)) { return ProtocolError("malformed exec output"); }
  if (end_seen) { return ProtocolError("exec output after the end"); }
  switch (message.kind_case()) {
    case pb::ExecOutput::kStarted:
      if (started_seen) { return ProtocolError("a program started twice"); }
      started_seen = true;
      started = message.started();
      break;
    case pb::ExecOutput::kStdoutData:
    case pb::ExecOutput::kStderrData: {
      const int which = message.kind_case() == pb::ExecOutput::kStdoutData ? 0 : 1;
      const std::string& bytes = which == 0 ? message.stdout_data() : message.stderr_data();
      // Costs window nothing, and this thread's time something.
      if (bytes.empty()) { return ProtocolError("an empty piece of output"); }
      if (bytes.size() > window) { return ProtocolError("more output than the window allows"); }
      window -= bytes.size();
      if (abandoned) { break; }
      if (out[1 - which].empty()) { first = which; }
      out[which] += bytes;
      break;
    }
    case pb::ExecOutput::kStdinWindowBytes:
      if (message.stdin_window_bytes() > kDefaultWindowBytes - stdin_window) { return ProtocolError("more stdin taken than was sent"); }
      stdin_window += message.stdin_window_bytes();
      break;
    case pb::ExecOutput::kStdinClosed: stdin_closed = true; break;
    case pb::ExecOutput::kEnd:
      if (message.end().outcome_case() == pb::ExecEnd::OUTCOME_NOT_SET) { return ProtocolError("an end without an outcome"); }
      end_seen = true;
      end = message.end();
      break;
    default: return ProtocolError("empty exec output");
  }
  return absl::OkStatus();
}

absl::Status ReadState::OnMessage(const std::string& bytes) {
  pb::ReadFileOutput message;
  if (!message.ParseFromString(bytes)) { return ProtocolError("malformed file data"); }
  switch (message.kind_case()) {
    case pb::ReadFileOutput::kInfo:
      if (info.has_value()) { return ProtocolError("a file described twice"); }
      info = message.info();
      break;
    case pb::ReadFileOutput::kData:
      if (message.data().empty()) { return ProtocolError("an empty piece of a file"); }
      if (message.data().size() > window) { return ProtocolError("more file data than the window allows"); }
      window -= message.data().size();
      if (!abandoned) { data += message.data(); }
      break;
    default: return ProtocolError("empty file data");
  }
  return absl::OkStatus();
}

absl::Status WriteState::OnMessage(const std::string& bytes) {
  pb::WriteFileOutput message;
  if (!message.ParseFromString(bytes)) { return ProtocolError("malformed answer to a file write"); }
  switch (message.kind_case()) {
    case pb::WriteFileOutput::kWindowBytes:
      if (message.window_bytes() > kDefaultWindowBytes - window) { return ProtocolError("more file data taken than was sent"); }
      window += message.window_bytes();
      break;
    case pb::WriteFileOutput::kInfo: info = message.info(); break;
    default: return ProtocolError("empty answer to a file write");
  }
  return absl::OkStatus();
}

struct AgentConnection::Socket {
  explicit Socket(const Executor& executor) : stream(executor) {}
  boost::asio::local::stream_protocol::socket stream;
};

AgentConnection::AgentConnection(Executor executor, const ttrpc::SyncToken& token, const ttrpc::Nonce& nonce)
    : executor_(executor),
      socket_(std::make_unique<Socket>(executor)),
      answer_(token, nonce),
      filler_(token, nonce, 0),
      ready_(executor),
      room_(executor) {}

AgentConnection::~AgentConnection() = default;

Task<absl::StatusOr<std::shared_ptr<AgentConnection>>> AgentConnection::Open(UniqueFd socket, ttrpc::SyncToken token, Deadline deadline) {
  const Executor executor = co_await boost::asio::this_coro::executor;
  const ttrpc::Nonce nonce = ttrpc::RandomNonce();
  auto self = std::make_shared<AgentConnection>(executor, token, nonce);
  boost::system::error_code error;
  self->socket_->stream.assign(boost::asio::local::stream_protocol(), socket.get(), error);
  if (error) { co_return ErrnoError(error.value(), "the agent's socket"); }
  (void)socket.release();
  self->socket_->stream.native_non_blocking(true, error);
  if (error) { co_return ErrnoError(error.value(), "the agent's socket"); }
  self->queue_ = ttrpc::EncodeHello(token, nonce, 0);
  self->writing_ = true;
  SpawnOn(executor, WriteLoop(self));
  SpawnOn(executor, ReadLoop(self));
  const bool ready = co_await self->ready_.Wait(deadline);
  if (!ready) {
    self->Close(Error(absl::StatusCode::kUnavailable, Reason::kAgentUnreachable, "the guest's agent did not answer the hello in time"), false);
  }
  if (self->closed_) { co_return self->status_; }
  co_return self;
}

Task<void> AgentConnection::ReadLoop(std::shared_ptr<AgentConnection> self) {
  // Shared by all connections of the thread, and used between two awaits alone: thousands of idle connections have no buffer each.
  static thread_local std::array<char, 64 * 1024> buffer;
  while (!self->closed_) {
    const auto [error] = co_await self->socket_->stream.async_wait(boost::asio::socket_base::wait_read, kNoThrow);
    if (error || self->closed_) { break; }
    const ssize_t got = recv(self->socket_->stream.native_handle(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) { continue; }
    if (got <= 0) {
      self->Close(Error(absl::StatusCode::kUnavailable, Reason::kAgentUnreachable, "the connection to the guest's agent ended"), true);
      break;
    }
    self->OnBytes(std::span<const char>(buffer.data(), static_cast<std::size_t>(got)));
  }
}

Task<void> AgentConnection::WriteLoop(std::shared_ptr<AgentConnection> self) {
  std::string sending;
  while (!self->closed_ && !self->queue_.empty()) {
    sending.clear();
    sending.swap(self->queue_);
    self->room_.Set();
    std::size_t sent = 0;
    while (sent < sending.size() && !self->closed_) {
      const ssize_t put = send(self->socket_->stream.native_handle(), sending.data() + sent, sending.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (put >= 0) {
        sent += static_cast<std::size_t>(put);
        continue;
      }
      if (errno == EINTR) { continue; }
      if (errno != EAGAIN) {
        self->Close(Error(absl::StatusCode::kUnavailable, Reason::kAgentUnreachable, "the connection to the guest's agent ended"), true);
        break;
      }
      const auto [error] = co_await self->socket_->stream.async_wait(boost::asio::socket_base::wait_write, kNoThrow);
      if (error) { break; }
    }
  }
  self->writing_ = false;
}

void AgentConnection::OnBytes(std::span<const char> in) {
  if (!synced_) {
    if (!answer_.Feed(&in)) { return; }
    synced_ = true;
    ready_.Set();
  }
  while (!closed_) {
    switch (parser_.Feed(&in)) {
      case ttrpc::FrameParser::Result::kNeedMore: return;
      case ttrpc::FrameParser::Result::kBroken:
        Close(ProtocolError(absl::StrCat(parser_.why(), " at byte ", parser_.offset())), true);
        return;
      case ttrpc::FrameParser::Result::kFrame:
        if (const absl::Status status = OnFrame(parser_.frame()); !status.ok()) { Close(status, true); }
        break;
    }
  }
}

absl::Status AgentConnection::OnFrame(const ttrpc::Frame& frame) {
  const auto found = streams_.find(frame.stream_id);
  if (found == streams_.end()) { return ProtocolError(absl::StrCat("a frame for stream ", frame.stream_id, ", which does not exist")); }
  const std::shared_ptr<Stream> stream = found->second;
  if (frame.type == ttrpc::FrameType::kRequest) { return ProtocolError("a request from the guest"); }
  if (frame.type == ttrpc::FrameType::kResponse) {
    ttrpc::Response response;
    if (!response.ParseFromString(frame.data)) { return ProtocolError("malformed response"); }
    Finish(stream, StatusFromGuest(stream->method, response.status()), std::move(*response.mutable_payload()));
    return absl::OkStatus();
  }
  if ((frame.flags & ttrpc::kFlagNoData) == 0) {
    if (absl::Status status = stream->OnMessage(frame.data); !status.ok()) { return status; }
  } else if ((frame.flags & ttrpc::kFlagRemoteClosed) == 0) {
    return ProtocolError("a frame that says nothing");
  }
  if ((frame.flags & ttrpc::kFlagRemoteClosed) != 0) {
    Finish(stream, absl::OkStatus(), "");
    return absl::OkStatus();
  }
  stream->readable.Set();
  stream->writable.Set();
  return absl::OkStatus();
}

void AgentConnection::Finish(std::shared_ptr<Stream> stream, absl::Status status, std::string payload) {
  streams_.erase(stream->id);
  stream->done = true;
  stream->status = std::move(status);
  if (!stream->abandoned) { stream->payload = std::move(payload); }
  stream->readable.Set();
  stream->writable.Set();
}

void AgentConnection::Queue(uint32_t stream_id, ttrpc::FrameType type, uint8_t flags, const std::string& data) {
  if (closed_) { return; }
  std::string bytes;
  bytes.reserve(ttrpc::kHeaderBytes + data.size());
  ttrpc::AppendHeader(data.size(), stream_id, type, flags, &bytes);
  bytes += data;
  filler_.AppendFillerIfNeeded(&bytes);
  if (queue_.size() + bytes.size() > kMaxQueuedBytes) {
    Close(ProtocolError("it sends but does not read"), true);
    return;
  }
  queue_ += bytes;
  if (!writing_) {
    writing_ = true;
    SpawnOn(executor_, WriteLoop(shared_from_this()));
  }
}

Task<absl::Status> AgentConnection::WaitForRoom(std::shared_ptr<AgentConnection> self, Deadline deadline) {
  while (!self->closed_ && self->queue_.size() >= kQueueRoomBytes) {
    self->room_.Reset();
    const bool room = co_await self->room_.Wait(deadline);
    if (!room && !self->closed_) { co_return DeadlineError("send"); }
  }
  co_return self->closed_ ? self->status_ : absl::OkStatus();
}

Task<absl::Status> AgentConnection::Begin(std::shared_ptr<AgentConnection> self, std::shared_ptr<Stream> stream, const char* method,
                                          std::string payload, uint8_t flags, Deadline deadline) {
  stream->method = method;
  const absl::Status room = co_await WaitForRoom(self, deadline);
  if (!room.ok()) { co_return room; }
  if (self->streams_.size() >= kMaxStreams) {
    co_return Error(absl::StatusCode::kResourceExhausted, Reason::kLimitReached, absl::StrCat("more than ", kMaxStreams, " calls into one guest at a time"));
  }
  if (self->next_id_ > UINT32_MAX) {
    // Ids are never reused on a connection (ttrpc); a new connection is cheap.
    self->Close(Error(absl::StatusCode::kUnavailable, Reason::kAgentUnreachable, "the connection has used up its stream ids"), true);
    co_return self->status_;
  }
  ttrpc::Request request;
  request.set_service(kService);
  request.set_method(method);
  request.set_payload(std::move(payload));
  if (!deadline.IsNever()) { request.set_timeout_nano(std::chrono::nanoseconds(deadline.Remaining()).count()); }
  stream->id = static_cast<uint32_t>(self->next_id_);
  self->next_id_ += 2;
  self->streams_[stream->id] = stream;
  self->Queue(stream->id, ttrpc::FrameType::kRequest, flags, request.SerializeAsString());
  co_return self->closed_ ? self->status_ : absl::OkStatus();
}

Task<absl::Status> AgentConnection::Send(std::shared_ptr<AgentConnection> self, std::shared_ptr<Stream> stream, std::string data, Deadline deadline) {
  const absl::Status room = co_await WaitForRoom(self, deadline);
  if (!room.ok()) { co_return room; }
  if (!stream->done) { self->Queue(stream->id, ttrpc::FrameType::kData, 0, data); }
  co_return self->closed_ ? self->status_ : absl::OkStatus();
}

void AgentConnection::SendNow(Stream& stream, const std::string& data) {
  if (!stream.done) { Queue(stream.id, ttrpc::FrameType::kData, 0, data); }
}

void AgentConnection::Close(const absl::Status& why, bool tell) {
  if (closed_) { return; }
  closed_ = true;
  tell_ = tell;
  status_ = why;
  std::map<uint32_t, std::shared_ptr<Stream>> streams;
  streams.swap(streams_);
  for (auto& [id, stream] : streams) {
    stream->done = true;
    stream->status = why;
    stream->readable.Set();
    stream->writable.Set();
  }
  std::string().swap(queue_);
  parser_.Reset();
  room_.Set();
  ready_.Set();
  boost::system::error_code ignored;
  socket_->stream.close(ignored);
  if (on_close_ && tell_) { OnClose(std::move(on_close_)); }
}

void AgentConnection::OnClose(absl::AnyInvocable<void(const absl::Status&)> callback) {
  on_close_ = std::move(callback);
  if (!closed_ || !tell_ || !on_close_) { return; }
  // Posted: the caller may be anywhere, and the callback may do anything.
  boost::asio::post(executor_, [self = shared_from_this()] {
    absl::AnyInvocable<void(const absl::Status&)> posted = std::move(self->on_close_);
    self->on_close_ = nullptr;
    if (posted) { posted(self->status_); }
  });
}

}  // namespace forkd::guest
