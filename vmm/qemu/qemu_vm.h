// One QEMU process: its control socket, its watch, its end.
#ifndef FORKD_VMM_QEMU_QEMU_VM_H_
#define FORKD_VMM_QEMU_QEMU_VM_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/async.h"
#include "base/blocking_pool.h"
#include "vmm/launcher/launcher.h"
#include "vmm/vmm.h"

namespace forkd::vmm {

class QemuVm final : public Vm {
 public:
  struct Parts {
    std::string id;
    ProcessId process;
    Pidfd pidfd;
    UniqueFd stderr_read;  // not valid for an adopted VM
    std::string run_dir;
    std::shared_ptr<const RootImage> root;
    UidLease uid;  // held for as long as the process may live
  };

  // Begins to watch the process: from here on it is killed if this object dies. The sockets in run_dir go with it.
  QemuVm(Parts parts, Executor executor, BlockingPool* pool, Launcher* launcher);
  ~QemuVm() override;

  // The steps of the driver, in this order; after an error only Kill is allowed.
  // Connects to the control socket and learns whether the guest runs.
  Task<absl::Status> ConnectControl(Deadline deadline);
  // Writes `pages` into the guest's memory; it must not have run.
  Task<absl::Status> Inject(std::shared_ptr<const PageSet> pages);
  // Loads a device state into a QEMU that waits for one.
  Task<absl::Status> Load(std::shared_ptr<const std::string> device_state, Deadline deadline);

  Task<absl::Status> Pause(Deadline deadline) override;
  Task<absl::Status> Resume(Deadline deadline) override;
  Task<absl::StatusOr<VmStatus>> QueryStatus(Deadline deadline) override;
  Task<absl::StatusOr<std::string>> SaveDeviceState(Deadline deadline) override;
  Task<absl::Status> PrepareBranch(Deadline deadline) override;
  Task<absl::StatusOr<PageSet>> CollectDivergedPages(Deadline deadline) override;
  Task<absl::StatusOr<UniqueFd>> ConnectAgent(Deadline deadline) override;
  Task<absl::StatusOr<std::string>> ReadConsole(int64_t max_bytes, Deadline deadline) override;
  Task<absl::Status> Kill(Deadline deadline) override;
  void OnExit(absl::AnyInvocable<void(const VmExit&)> callback) override;
  void Release() override;

 private:
  struct State;
  struct StateTarget;
  static Task<void> WatchProcess(std::shared_ptr<State> state);
  static Task<void> ReportUnlessEnded(std::shared_ptr<State> state, std::string reason);
  static Task<void> CheckUnexpectedStop(std::shared_ptr<State> state);
  static Task<absl::StatusOr<nlohmann::json>> Command(std::shared_ptr<State> state, std::string command, nlohmann::json arguments,
                                                      Deadline deadline, int fd = -1);
  static Task<absl::StatusOr<VmStatus>> QueryOn(std::shared_ptr<State> state, Deadline deadline);
  static Task<absl::Status> LoadOn(std::shared_ptr<State> state, std::shared_ptr<const std::string> device_state, Deadline deadline);
  static Task<absl::Status> EnsureStateTarget(std::shared_ptr<State> state, Deadline deadline);
  static Task<absl::StatusOr<std::string>> SaveOn(std::shared_ptr<State> state, Deadline deadline);

  std::shared_ptr<State> state_;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_QEMU_QEMU_VM_H_
