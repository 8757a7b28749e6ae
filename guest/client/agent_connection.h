// One connection to a guest agent: the socket, frames both ways, streams and their windows. Internal to this folder; Asio stays in the .cc.
//
// What bounds memory against a hostile guest: a partial frame (4 MiB), each stream's window (256 KiB unless the caller asked for more), the number of
// streams (1024), the write queue (kMaxQueuedBytes). All breaches end the connection.
#ifndef FORKD_GUEST_CLIENT_AGENT_CONNECTION_H_
#define FORKD_GUEST_CLIENT_AGENT_CONNECTION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/async.h"
#include "base/async_event.h"
#include "base/deadline.h"
#include "base/unique_fd.h"
#include "guest/ttrpc/frame.h"
#include "guest/ttrpc/sync.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::guest {

// The agent's default window (agent.proto), each direction.
inline constexpr uint64_t kDefaultWindowBytes = 256 * 1024;

absl::Status ProtocolError(absl::string_view what);
absl::Status DeadlineError(absl::string_view what);

// One stream, unary or not, from the request to the guest's last frame. An owner that loses interest marks it abandoned; it stays registered until
// the guest ends it, so that a frame for an unknown stream is always a breach.
struct Stream {
  explicit Stream(Executor executor) : readable(executor), writable(executor) {}
  virtual ~Stream() = default;
  // A data frame. An error is a breach of the protocol.
  virtual absl::Status OnMessage(const std::string& data) = 0;

  uint32_t id = 0;
  const char* method = "";
  // Set whenever something came.
  AsyncEvent readable;
  // Set whenever more may be sent on this stream.
  AsyncEvent writable;
  // The guest has ended the stream, or the connection has ended: `status` and, of a unary call, `payload` are final.
  bool done = false;
  absl::Status status;
  std::string payload;
  bool abandoned = false;
};

struct UnaryState : Stream {
  using Stream::Stream;
  absl::Status OnMessage(const std::string& data) override;
};

struct ExecState : Stream {
  using Stream::Stream;
  absl::Status OnMessage(const std::string& data) override;

  std::optional<forkd::agent::v1::ExecStarted> started;
  std::optional<forkd::agent::v1::ExecEnd> end;
  bool end_seen = false;  // It came; `end` is empty again once it was taken.
  bool started_seen = false;
  std::string out[2];       // stdout, stderr, as much as came and was not taken.
  int first = 0;            // Which of `out` has the older bytes.
  uint64_t window = kDefaultWindowBytes;     // What the guest may still send.
  uint64_t window_size = kDefaultWindowBytes;
  uint64_t taken = 0;       // Taken by the reader and not yet given back as window.
  uint64_t stdin_window = kDefaultWindowBytes;
  bool stdin_closed = false;
};

struct ReadState : Stream {
  using Stream::Stream;
  absl::Status OnMessage(const std::string& data) override;

  std::optional<forkd::agent::v1::FileInfo> info;
  std::string data;
  uint64_t window = kDefaultWindowBytes;
  uint64_t window_size = kDefaultWindowBytes;
  uint64_t taken = 0;
};

struct WriteState : Stream {
  using Stream::Stream;
  absl::Status OnMessage(const std::string& data) override;

  uint64_t window = kDefaultWindowBytes;
  std::optional<forkd::agent::v1::FileInfo> info;
};

class AgentConnection : public std::enable_shared_from_this<AgentConnection> {
 public:
  static Task<absl::StatusOr<std::shared_ptr<AgentConnection>>> Open(UniqueFd socket, ttrpc::SyncToken token, Deadline deadline);
  ~AgentConnection();

  // Waits for room in the write queue, then sends the request. `stream` gets its id. Flags: ttrpc's.
  static Task<absl::Status> Begin(std::shared_ptr<AgentConnection> self, std::shared_ptr<Stream> stream, const char* method, std::string payload,
                                  uint8_t flags, Deadline deadline);
  // Waits for room, then sends a data frame.
  static Task<absl::Status> Send(std::shared_ptr<AgentConnection> self, std::shared_ptr<Stream> stream, std::string data, Deadline deadline);
  // A data frame now, whatever the queue holds: window, cancellation. No effect on a stream that is done.
  void SendNow(Stream& stream, const std::string& data);

  void Close(const absl::Status& why, bool tell);
  bool closed() const { return closed_; }
  const absl::Status& status() const { return status_; }
  void OnClose(absl::AnyInvocable<void(const absl::Status&)> callback);
  const Executor& executor() const { return executor_; }

  AgentConnection(Executor executor, const ttrpc::SyncToken& token, const ttrpc::Nonce& nonce);

 private:
  struct Socket;
  static Task<void> ReadLoop(std::shared_ptr<AgentConnection> self);
  static Task<void> WriteLoop(std::shared_ptr<AgentConnection> self);
  static Task<absl::Status> WaitForRoom(std::shared_ptr<AgentConnection> self, Deadline deadline);
  void OnBytes(std::span<const char> in);
  absl::Status OnFrame(const ttrpc::Frame& frame);
  void Queue(uint32_t stream_id, ttrpc::FrameType type, uint8_t flags, const std::string& data);
  void Finish(std::shared_ptr<Stream> stream, absl::Status status, std::string payload);

  Executor executor_;
  std::unique_ptr<Socket> socket_;
  bool synced_ = false;
  ttrpc::AnswerScanner answer_;
  ttrpc::FillerSource filler_;
  ttrpc::FrameParser parser_;
  AsyncEvent ready_;
  AsyncEvent room_;
  std::string queue_;
  bool writing_ = false;
  std::map<uint32_t, std::shared_ptr<Stream>> streams_;
  uint64_t next_id_ = 1;
  bool closed_ = false;
  bool tell_ = false;
  absl::Status status_;
  absl::AnyInvocable<void(const absl::Status&)> on_close_;
};

}  // namespace forkd::guest

#endif  // FORKD_GUEST_CLIENT_AGENT_CONNECTION_H_
