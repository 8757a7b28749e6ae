#include "guest/agent/connection.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <vector>

#include "guest/agent/console.h"

namespace forkd::agent {

bool Call::Alive() const { return connection_->epoch_ == epoch_; }

void Call::Send(const google::protobuf::MessageLite& message) const {
  if (Alive()) { connection_->SendFrame(stream_id_, ttrpc::FrameType::kData, 0, message); }
}

void Call::Reply(const google::protobuf::MessageLite& message) const {
  if (Alive()) { connection_->Respond(stream_id_, Status{}, message.SerializeAsString()); }
}

void Call::Finish(const Status& status) const {
  if (Alive()) { connection_->Respond(stream_id_, status, std::string()); }
}

bool Call::Congested() const { return Alive() && connection_->out_.size() - connection_->out_sent_ >= Connection::kHighWaterBytes; }

Connection::Connection(EventLoop* loop, UniqueFd fd, Kind kind, const ttrpc::SyncToken& token, Dispatch dispatch)
    : loop_(loop), fd_(std::move(fd)), kind_(kind), token_(token), dispatch_(std::move(dispatch)), scanner_(token) {
  // Edge-triggered: a serial port without a host reports EPOLLIN and EPOLLHUP for as long as that lasts.
  loop_->Add(fd_.get(), EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, [this](uint32_t events) { OnEvents(events); });
}

void Connection::OnEvents(uint32_t events) {
  if ((events & EPOLLOUT) != 0) { Flush(); }
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR)) == 0) { return; }
  ttrpc::HelloScanner::Sink sink;
  sink.payload = [this](std::span<const char> in) { OnPayload(in); };
  sink.hello = [this](const ttrpc::HelloScanner::Hello& hello) { OnHello(hello); };
  static char buffer[32 * 1024];  // One loop, no recursion: static keeps it in pages that are touched anyway.
  while (true) {
    const ssize_t got = read(fd_.get(), buffer, sizeof buffer);
    if (got > 0) {
      scanner_.Feed(std::span<const char>(buffer, static_cast<std::size_t>(got)), sink);
      continue;
    }
    if (got < 0 && errno == EINTR) { continue; }
    if (got < 0 && errno == EAGAIN) { return; }
    if (kind_ == Kind::kSocket) { loop_->Stop(); }
    return;  // A serial port without a host: the next edge says that one came.
  }
}

void Connection::OnHello(const ttrpc::HelloScanner::Hello& hello) {
  ++epoch_;
  broken_ = false;
  parser_.Reset();
  out_.clear();
  out_sent_ = 0;
  std::map<uint32_t, std::shared_ptr<StreamHandler>> orphans;
  orphans.swap(streams_);
  for (auto& [id, stream] : orphans) { stream->OnOrphaned(); }
  out_ = ttrpc::EncodeAnswer(token_, hello.nonce);
  Flush();
}

void Connection::OnPayload(std::span<const char> in) {
  if (epoch_ == 0 || broken_) { return; }
  const uint64_t epoch = epoch_;
  while (epoch == epoch_) {
    switch (parser_.Feed(&in)) {
      case ttrpc::FrameParser::Result::kNeedMore: return;
      case ttrpc::FrameParser::Result::kBroken:
        Say(std::string("the host's stream is broken: ") + parser_.why());
        broken_ = true;
        return;
      case ttrpc::FrameParser::Result::kFrame: OnFrame(parser_.frame()); break;
    }
  }
}

void Connection::OnFrame(ttrpc::Frame& frame) {
  if (frame.stream_id == 0) { return; }  // A filler (sync.h).
  if (frame.type == ttrpc::FrameType::kRequest) {
    ttrpc::Request request;
    if (!request.ParseFromString(frame.data)) {
      Respond(frame.stream_id, Status{Code::kInvalidArgument, "malformed request"}, std::string());
      return;
    }
    const bool streaming = (frame.flags & (ttrpc::kFlagRemoteOpen | ttrpc::kFlagRemoteClosed)) != 0;
    std::shared_ptr<StreamHandler> handler = dispatch_(request, streaming, Call(this, epoch_, frame.stream_id));
    if (handler != nullptr) { streams_[frame.stream_id] = std::move(handler); }
    return;
  }
  if (frame.type != ttrpc::FrameType::kData || (frame.flags & ttrpc::kFlagNoData) != 0) { return; }
  const auto found = streams_.find(frame.stream_id);
  if (found == streams_.end()) { return; }  // It has ended; the host did not know yet.
  const std::shared_ptr<StreamHandler> stream = found->second;
  stream->OnMessage(frame.data);
}

void Connection::SendFrame(uint32_t stream_id, ttrpc::FrameType type, uint8_t flags, const google::protobuf::MessageLite& message) {
  ttrpc::AppendHeader(message.ByteSizeLong(), stream_id, type, flags, &out_);
  message.AppendToString(&out_);
  Flush();
}

void Connection::Respond(uint32_t stream_id, const Status& status, const std::string& payload) {
  ttrpc::Response response;
  if (!status.ok()) {
    response.mutable_status()->set_code(static_cast<int>(status.code));
    response.mutable_status()->set_message(status.message);
  }
  response.set_payload(payload);
  streams_.erase(stream_id);
  SendFrame(stream_id, ttrpc::FrameType::kResponse, 0, response);
}

void Connection::Flush() {
  while (out_sent_ < out_.size()) {
    const ssize_t put = write(fd_.get(), out_.data() + out_sent_, out_.size() - out_sent_);
    if (put < 0 && errno == EINTR) { continue; }
    if (put <= 0) { break; }  // EAGAIN: the next edge. Anything else shows on the reading side.
    out_sent_ += static_cast<std::size_t>(put);
  }
  const std::size_t waiting = out_.size() - out_sent_;
  if (waiting == 0) {
    if (out_.capacity() > 64 * 1024) { std::string().swap(out_); }
    out_.clear();
    out_sent_ = 0;
  } else if (out_sent_ > kHighWaterBytes) {
    out_.erase(0, out_sent_);
    out_sent_ = 0;
  }
  if (waiting >= kHighWaterBytes) { was_congested_ = true; }
  if (flushing_) { return; }  // OnWritable below sends, which flushes: the loop there sees what came of it.
  flushing_ = true;
  while (was_congested_ && out_.size() - out_sent_ < kHighWaterBytes / 2) {
    was_congested_ = false;
    std::vector<std::shared_ptr<StreamHandler>> handlers;
    for (auto& [id, stream] : streams_) { handlers.push_back(stream); }
    for (auto& stream : handlers) { stream->OnWritable(); }
  }
  flushing_ = false;
}

}  // namespace forkd::agent
