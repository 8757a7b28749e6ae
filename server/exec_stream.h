// Programs in the guest, between a client's call and the agent's stream.
#ifndef FORKD_SERVER_EXEC_STREAM_H_
#define FORKD_SERVER_EXEC_STREAM_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/async.h"
#include "base/deadline.h"
#include "guest/client/agent_client.h"
#include "proto/forkd/v1/sandbox.pb.h"
#include "server/call.h"

namespace forkd::server {

struct ExecCollected {
  std::string stdout_data;
  std::string stderr_data;
  bool stdout_truncated = false;
  bool stderr_truncated = false;
  guest::agentpb::ExecEnd end;
};

// Runs a program to its end. Keeps at most `max_output` bytes of each stream and drops the rest, so that a flood neither stops the program nor
// fills memory. A client that goes away has its program killed: CANCELLED.
Task<absl::StatusOr<ExecCollected>> CollectExec(std::shared_ptr<Call> call, std::shared_ptr<guest::AgentClient> agent,
                                                guest::agentpb::ExecStart start, std::string stdin_data, std::size_t max_output, Deadline deadline);

// Relays both directions until the program ends or the client goes away, which kills it unless it was started detached.
Task<absl::Status> RelayExec(std::shared_ptr<Call> call, std::shared_ptr<guest::AgentClient> agent, guest::agentpb::ExecStart start,
                             std::shared_ptr<CallBridge::Stream<v1::ExecStreamRequest, v1::ExecStreamResponse>> peer);

}  // namespace forkd::server

#endif  // FORKD_SERVER_EXEC_STREAM_H_
