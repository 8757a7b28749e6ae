// For tests of VMM drivers: a driver's surroundings, and the tiny guest (tests/tinyguest) behind its agent port.
#ifndef FORKD_VMM_TESTING_TINY_GUEST_H_
#define FORKD_VMM_TESTING_TINY_GUEST_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/blocking_pool.h"
#include "base/runtime.h"
#include "vmm/launcher/launcher.h"
#include "vmm/vmm.h"

namespace forkd::vmm {

// A runtime, a pool, a launcher and a scratch folder; gone with the object.
class VmmSurroundings {
 public:
  VmmSurroundings();
  ~VmmSurroundings();

  // Runs `task` on the I/O thread and waits for its result.
  template <typename T>
  T Await(Task<T> task) {
    std::optional<T> result;
    runtime.RunBlocking(Store(std::move(task), &result));
    return *std::move(result);
  }
  // Runs `fn` on the I/O thread and waits: destructors of VMs belong there.
  void OnIoThread(absl::AnyInvocable<void()> fn);
  // A new folder for one VM.
  std::string NewRunDir();

  std::string scratch;
  Runtime runtime;
  BlockingPool pool{2};
  Launcher launcher;

 private:
  template <typename T>
  static Task<void> Store(Task<T> task, std::optional<T>* result) {
    result->emplace(co_await std::move(task));
  }
  int next_run_dir_ = 0;
};

// The guest's kernel file; dies if the test's data lacks it.
UniqueFd OpenTinyGuest();
// Makes the guest's virtio-serial port a command line, for QEMU's microvm.
inline constexpr char kTinyGuestArgs[] = "run=vserial+0xfeb02e00+47;vcmd+1;idle+1";

// Sends a command line over the agent's stream and gives the answer without its newline; "<timeout>" or "<closed>" after 20 s or an end.
std::string Ask(int agent, const std::string& command);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_TESTING_TINY_GUEST_H_
