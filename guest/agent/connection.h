// The agent's end of the channel: bytes in and out of one descriptor, hellos, frames, and which call a frame belongs to.
#ifndef FORKD_GUEST_AGENT_CONNECTION_H_
#define FORKD_GUEST_AGENT_CONNECTION_H_

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/unique_fd.h"
#include "guest/agent/event_loop.h"
#include "guest/ttrpc/frame.h"
#include "guest/ttrpc/sync.h"
#include "guest/ttrpc/ttrpc.pb.h"

namespace forkd::agent {

// google.rpc.Code, the ones used here.
enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
};

struct Status {
  Code code = Code::kOk;
  std::string message;
  bool ok() const { return code == Code::kOk; }
};

class Connection;

// One call, answered through this handle at any later time. Copyable. Once the host has begun another connection, or the call has been finished,
// everything sent is dropped.
class Call {
 public:
  Call(Connection* connection, uint64_t epoch, uint32_t stream_id) : connection_(connection), epoch_(epoch), stream_id_(stream_id) {}
  bool Alive() const;
  // A message of a streaming call.
  void Send(const google::protobuf::MessageLite& message) const;
  // The answer of a unary call.
  void Reply(const google::protobuf::MessageLite& message) const;
  // Closes the stream, or fails a unary call.
  void Finish(const Status& status) const;
  // Too much is waiting to be sent: producers stop until OnWritable.
  bool Congested() const;

 private:
  Connection* connection_;
  uint64_t epoch_;
  uint32_t stream_id_;
};

// What a streaming call does with what comes.
class StreamHandler {
 public:
  virtual ~StreamHandler() = default;
  virtual void OnMessage(const std::string& payload) = 0;
  // The host's connection is gone; the Call is dead from now on.
  virtual void OnOrphaned() = 0;
  // The connection is no longer congested.
  virtual void OnWritable() {}
};

class Connection {
 public:
  // Called for each request. A handler for a streaming call is returned, for a unary one null (and the answer comes through the Call). A stream that was
  // finished before the return is not registered.
  using Dispatch = std::function<std::shared_ptr<StreamHandler>(const ttrpc::Request& request, bool streaming, Call call)>;
  enum class Kind {
    kSocket,      // The end of the stream is the end of the agent.
    kSerialPort,  // The host comes and goes.
  };

  // `fd` must be non-blocking.
  Connection(EventLoop* loop, UniqueFd fd, Kind kind, const ttrpc::SyncToken& token, Dispatch dispatch);

 private:
  friend class Call;
  // Output that may wait before producers stop. One serial-port write takes 32 KiB (virtio_console.c, port_fops_write).
  static constexpr std::size_t kHighWaterBytes = 256 * 1024;

  void OnEvents(uint32_t events);
  void OnHello(const ttrpc::HelloScanner::Hello& hello);
  void OnPayload(std::span<const char> in);
  void OnFrame(ttrpc::Frame& frame);
  void SendFrame(uint32_t stream_id, ttrpc::FrameType type, uint8_t flags, const google::protobuf::MessageLite& message);
  void Respond(uint32_t stream_id, const Status& status, const std::string& payload);
  void Flush();

  EventLoop* loop_;
  UniqueFd fd_;
  Kind kind_;
  ttrpc::SyncToken token_;
  Dispatch dispatch_;
  ttrpc::HelloScanner scanner_;
  ttrpc::FrameParser parser_;
  // Counts hellos; 0 until the first.
  uint64_t epoch_ = 0;
  bool broken_ = false;
  std::map<uint32_t, std::shared_ptr<StreamHandler>> streams_;
  std::string out_;
  std::size_t out_sent_ = 0;
  bool was_congested_ = false;
  bool flushing_ = false;
};

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_CONNECTION_H_
