// The host's end of the channel to the agent inside one microVM: typed calls over ttrpc, many at a time, on one connected stream socket.
//
// Everything the guest sends is untrusted: frames, counts and buffers are bounded, every wait has a deadline. A guest that breaks the protocol
// (malformed or oversized frames, frames for streams that do not exist, more output than it was given window for, input that it never reads)
// loses its connection: all pending calls then fail with UNAVAILABLE and reason AGENT_PROTOCOL; when the stream merely ends, UNAVAILABLE and
// AGENT_UNREACHABLE. A new client can be connected to the same guest at any time and any number of times (guest/ttrpc/sync.h).
//
// I/O thread only, like everything on the runtime (base/runtime.h). Errors of calls: DEADLINE_EXCEEDED with reason DEADLINE when the deadline
// passed first (the agent may still do what it was asked to); otherwise what the agent answered, with reason INVALID_FIELD, GUEST_FILE,
// RUNNER_UNAVAILABLE or LIMIT_REACHED.
#ifndef FORKD_GUEST_CLIENT_AGENT_CLIENT_H_
#define FORKD_GUEST_CLIENT_AGENT_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/async.h"
#include "base/deadline.h"
#include "base/unique_fd.h"
#include "guest/ttrpc/sync.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::guest {

namespace agentpb = ::forkd::agent::v1;

// A program's whole run, collected.
struct ExecResult {
  std::string stdout_data;
  std::string stderr_data;
  // More was written than `max_output_bytes` allowed to keep; the program was not held up by that.
  bool stdout_truncated = false;
  bool stderr_truncated = false;
  // Exactly one outcome is set.
  agentpb::ExecEnd end;
};

struct ExecEvent {
  enum class Kind { kStarted, kStdout, kStderr, kEnd };
  Kind kind = Kind::kEnd;
  // kStdout, kStderr.
  std::string data;
  // kStarted.
  agentpb::ExecStarted started;
  // kEnd, exactly once, last.
  agentpb::ExecEnd end;
};

// Internal.
class AgentConnection;
struct ExecState;
struct ReadState;
struct WriteState;

// One running program. Destroying it before the end kills the program's process group, unless it was started detached. At most one Next and one
// write at a time.
class ExecStream {
 public:
  ExecStream(std::shared_ptr<AgentConnection> connection, std::shared_ptr<ExecState> state);  // Internal: see AgentClient.
  ~ExecStream();
  ExecStream(const ExecStream&) = delete;
  ExecStream& operator=(const ExecStream&) = delete;

  // The next event. A deadline that passes leaves the stream as it is: Next may be called again. After kEnd: OUT_OF_RANGE. Taking an event is
  // what gives the guest window for more, so a reader that stops stops the program, not the daemon's memory. What came since the last call comes
  // as one piece of stdout and one of stderr: each keeps its order, between them it is as loose as two pipes are.
  Task<absl::StatusOr<ExecEvent>> Next(Deadline deadline);
  // Waits while the program has not taken what was written before (256 KiB). OK also when the program has closed its stdin: the rest is dropped.
  Task<absl::Status> WriteStdin(std::string data, Deadline deadline);
  Task<absl::Status> CloseStdin(Deadline deadline);
  Task<absl::Status> Resize(uint32_t rows, uint32_t cols, Deadline deadline);
  // To the process group.
  Task<absl::Status> Signal(int32_t signal, Deadline deadline);
  // Kills the process group (detached: lets it go); events are dropped. Idempotent, does not wait.
  void Cancel();

 private:
  std::shared_ptr<AgentConnection> connection_;
  std::shared_ptr<ExecState> state_;
};

// A file being read. Destroying it stops the transfer.
class FileReader {
 public:
  FileReader(std::shared_ptr<AgentConnection> connection, std::shared_ptr<ReadState> state, agentpb::FileInfo info);  // Internal: see AgentClient.
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // As it was when it was opened.
  const agentpb::FileInfo& info() const { return info_; }
  // The next piece, at most 64 KiB; empty at the end.
  Task<absl::StatusOr<std::string>> Next(Deadline deadline);

 private:
  std::shared_ptr<AgentConnection> connection_;
  std::shared_ptr<ReadState> state_;
  agentpb::FileInfo info_;
};

// A file being written. Destroying it before Commit leaves the path as it was.
class FileWriter {
 public:
  FileWriter(std::shared_ptr<AgentConnection> connection, std::shared_ptr<WriteState> state);  // Internal: see AgentClient.
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  // Pieces of any size; waits while the agent is behind.
  Task<absl::Status> Write(std::string data, Deadline deadline);
  // Puts the file in place.
  Task<absl::StatusOr<agentpb::FileInfo>> Commit(Deadline deadline);

 private:
  std::shared_ptr<AgentConnection> connection_;
  std::shared_ptr<WriteState> state_;
};

class AgentClient {
 public:
  // Begins a connection on `socket` (connected, stream; e.g. the Unix socket of the VMM's chardev): sends HELLO and waits for the guest's answer.
  // UNAVAILABLE AGENT_UNREACHABLE when the deadline passes or the socket ends first.
  static Task<absl::StatusOr<std::shared_ptr<AgentClient>>> Connect(UniqueFd socket, ttrpc::SyncToken token, Deadline deadline);
  // Closes: pending calls fail with CANCELLED.
  ~AgentClient();
  AgentClient(const AgentClient&) = delete;
  AgentClient& operator=(const AgentClient&) = delete;

  Task<absl::StatusOr<agentpb::PingResponse>> Ping(Deadline deadline);
  // OK only says that the steps were tried: look at failures().
  Task<absl::StatusOr<agentpb::PrepareResponse>> Prepare(agentpb::PrepareRequest request, Deadline deadline);
  Task<absl::StatusOr<agentpb::EvalResponse>> Eval(agentpb::EvalRequest request, Deadline deadline);
  Task<absl::StatusOr<agentpb::WarmupResponse>> Warmup(agentpb::WarmupRequest request, Deadline deadline);

  // Runs a program to its end and keeps at most `max_output_bytes` of each of stdout and stderr. `stdin_data` is written to it if not empty. When
  // the deadline passes the program is killed and the error is DEADLINE_EXCEEDED. A program that cannot be started is OK with end.exec_error.
  Task<absl::StatusOr<ExecResult>> Exec(agentpb::ExecStart start, std::size_t max_output_bytes, Deadline deadline, std::string stdin_data = {});
  // Starts a program and returns at once; whether it could be started is the stream's first event.
  Task<absl::StatusOr<std::shared_ptr<ExecStream>>> StartExec(agentpb::ExecStart start, Deadline deadline);
  Task<absl::Status> SignalExec(uint64_t exec_id, int32_t signal, Deadline deadline);

  Task<absl::StatusOr<std::shared_ptr<FileReader>>> ReadFile(agentpb::ReadFileStart start, Deadline deadline);
  Task<absl::StatusOr<std::shared_ptr<FileWriter>>> WriteFile(agentpb::WriteFileStart start, Deadline deadline);
  Task<absl::StatusOr<agentpb::ListDirectoryResponse>> ListDirectory(agentpb::ListDirectoryRequest request, Deadline deadline);
  Task<absl::StatusOr<agentpb::FileInfo>> StatFile(agentpb::StatFileRequest request, Deadline deadline);
  Task<absl::Status> RemoveFile(agentpb::RemoveFileRequest request, Deadline deadline);
  Task<absl::Status> Sync(Deadline deadline);

  // Closes now, without waiting. Idempotent.
  void Close();
  bool closed() const;
  // OK while open; afterwards why it closed.
  absl::Status status() const;
  // Called once, on the I/O thread, when the connection closes for any reason but Close() and destruction. If it has closed already, called soon.
  // At most one callback; a later one replaces it.
  void OnClose(absl::AnyInvocable<void(const absl::Status&)> callback);

  // Internal: use Connect.
  explicit AgentClient(std::shared_ptr<AgentConnection> connection);

 private:
  std::shared_ptr<AgentConnection> connection_;
};

}  // namespace forkd::guest

#endif  // FORKD_GUEST_CLIENT_AGENT_CLIENT_H_
