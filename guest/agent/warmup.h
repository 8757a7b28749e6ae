// What is done once, before the snapshot: start the runner, run the image's warm-up command, evaluate the image's warm-up code.
#ifndef FORKD_GUEST_AGENT_WARMUP_H_
#define FORKD_GUEST_AGENT_WARMUP_H_

#include "guest/agent/connection.h"
#include "guest/agent/event_loop.h"
#include "guest/agent/runner.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::agent {

void StartWarmup(EventLoop* loop, Runner* runner, const ::forkd::agent::v1::WarmupRequest& request, Call call);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_WARMUP_H_
