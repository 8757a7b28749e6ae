// Makes a clone a machine of its own: entropy, clock, names.
#ifndef FORKD_GUEST_AGENT_PREPARE_H_
#define FORKD_GUEST_AGENT_PREPARE_H_

#include <functional>
#include <string>

#include "guest/agent/connection.h"
#include "guest/agent/exec.h"
#include "guest/agent/runner.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::agent {

class Preparer {
 public:
  // Whether the agent is PID 1 of a machine. If not (tests), the steps that would change the machine fail, each by its name, and do nothing.
  enum class Machine { kOwn, kForeign };

  // `run_dir` holds what Prepare leaves behind (the generation, the boot id's file): /run/forkd.
  Preparer(Machine machine, std::string run_dir, ExecTable* execs, Runner* runner)
      : machine_(machine), run_dir_(std::move(run_dir)), execs_(execs), runner_(runner) {}

  // On a machine of its own, once at boot: makes the files that Prepare will change (copied up into the overlay, mounted), so that the parent has done what
  // would otherwise cost every clone time and memory of its own.
  void MakeIdentityFiles();

  void Prepare(const ::forkd::agent::v1::PrepareRequest& request, Call call);
  uint64_t generation() const { return generation_; }

 private:
  Machine machine_;
  std::string run_dir_;
  ExecTable* execs_;
  Runner* runner_;
  uint64_t generation_ = 0;
};

// What /proc/sys/kernel/random/boot_id shows, without the line end.
std::string BootId();

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_PREPARE_H_
