// AgentService (agent.proto): which method does what.
#ifndef FORKD_GUEST_AGENT_AGENT_SERVICE_H_
#define FORKD_GUEST_AGENT_AGENT_SERVICE_H_

#include <memory>
#include <string>

#include "guest/agent/connection.h"
#include "guest/agent/event_loop.h"
#include "guest/agent/exec.h"
#include "guest/agent/prepare.h"
#include "guest/agent/runner.h"

namespace forkd::agent {

class AgentService {
 public:
  struct Options {
    Preparer::Machine machine = Preparer::Machine::kForeign;
    std::string runner_program = "/usr/lib/forkd/runner";
    std::string run_dir = "/run/forkd";
  };

  AgentService(EventLoop* loop, const Options& options)
      : loop_(loop), execs_(loop), runner_(loop, options.runner_program), preparer_(options.machine, options.run_dir, &execs_, &runner_) {}

  std::shared_ptr<StreamHandler> Dispatch(const ttrpc::Request& request, bool streaming, Call call);
  // Once, before serving as PID 1.
  void MakeIdentityFiles() { preparer_.MakeIdentityFiles(); }
  // Ends what the agent has started.
  void Shutdown();

 private:
  void Ping(Call call);
  void Warmup(const ::forkd::agent::v1::WarmupRequest& request, Call call);

  EventLoop* loop_;
  ExecTable execs_;
  Runner runner_;
  Preparer preparer_;
};

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_AGENT_SERVICE_H_
