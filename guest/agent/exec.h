// Programs started for the host: their streams, window, signals, end.
#ifndef FORKD_GUEST_AGENT_EXEC_H_
#define FORKD_GUEST_AGENT_EXEC_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "guest/agent/connection.h"
#include "guest/agent/event_loop.h"

namespace forkd::agent {

class Exec;

// All programs that run.
class ExecTable {
 public:
  explicit ExecTable(EventLoop* loop) : loop_(loop) {}

  // The handler of a new Exec call.
  std::shared_ptr<StreamHandler> NewStream(Call call);
  Status Signal(uint64_t exec_id, int signal);
  // Kills the programs whose host connection is gone, except detached ones. How many.
  uint32_t KillOrphans();
  // At the end of the agent: everything that is not detached.
  void KillAll();
  uint32_t size() const { return static_cast<uint32_t>(running_.size()); }

 private:
  friend class Exec;
  EventLoop* loop_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::shared_ptr<Exec>> running_;
};

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_EXEC_H_
