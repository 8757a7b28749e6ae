// The agent's real binary as an ordinary process, on a byte stream that outlives the host's connections as a virtio-serial port does.
#ifndef FORKD_GUEST_AGENT_TESTING_AGENT_PROCESS_H_
#define FORKD_GUEST_AGENT_TESTING_AGENT_PROCESS_H_

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "guest/ttrpc/sync.h"

namespace forkd::guest {

class AgentProcess {
 public:
  // Starts the agent; its runner is this tree's runner.py unless another program is named ("" for none).
  explicit AgentProcess(const std::string& runner = "guest/agent/runner.py");
  // Kills the agent and what it started.
  ~AgentProcess();

  const ttrpc::SyncToken& token() const { return token_; }
  pid_t pid() const { return pid_; }
  // A new host connection: the previous one's socket may be closed or still open (it is cut then). Bytes that were under way stay under way.
  UniqueFd Attach();
  // Memory of the agent's own, in KiB (Private_Dirty of smaps_rollup: clean pages are its file's).
  long PrivateKib() const;
  const std::string& folder() const { return folder_; }

 private:
  void Relay();

  ttrpc::SyncToken token_;
  std::string folder_;
  pid_t pid_ = -1;
  UniqueFd agent_end_;
  UniqueFd wake_;
  std::mutex mutex_;
  UniqueFd next_host_;  // Guarded by mutex_.
  std::atomic<bool> stop_{false};
  std::thread relay_;
};

}  // namespace forkd::guest

#endif  // FORKD_GUEST_AGENT_TESTING_AGENT_PROCESS_H_
