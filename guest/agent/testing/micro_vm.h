// A microVM of an image, booted by hand, for tests of the agent as PID 1. The product's own way is vmm/.
#ifndef FORKD_GUEST_AGENT_TESTING_MICRO_VM_H_
#define FORKD_GUEST_AGENT_TESTING_MICRO_VM_H_

#include <sys/types.h>

#include <string>

#include "base/unique_fd.h"
#include "guest/ttrpc/sync.h"

namespace forkd::guest {

class MicroVm {
 public:
  struct Options {
    // A folder of FORKD_IMAGE_DIR.
    std::string image = "base";
    bool with_root = true;
    // Instead of forkd.sync=… of token().
    std::string sync_argument;
    std::string more_arguments;
  };

  explicit MicroVm(const Options& options);
  // Ends the VMM.
  ~MicroVm();
  MicroVm(const MicroVm&) = delete;
  MicroVm& operator=(const MicroVm&) = delete;

  const ttrpc::SyncToken& token() const { return token_; }
  // A host connection to the port forkd.agent; one at a time.
  UniqueFd Attach() const;
  std::string Console() const;
  // True when the VMM has ended by itself within `seconds`.
  bool EndsWithin(int seconds);

  // Where the images are; empty if the tests were started without them.
  static std::string ImageDir();

 private:
  ttrpc::SyncToken token_;
  std::string folder_;
  pid_t pid_ = -1;
};

}  // namespace forkd::guest

#endif  // FORKD_GUEST_AGENT_TESTING_MICRO_VM_H_
