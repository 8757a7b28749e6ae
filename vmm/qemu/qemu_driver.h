// The QEMU driver: microvm machines of the stock binary, under KVM or TCG. Facts it rests on: vmm/README.md.
#ifndef FORKD_VMM_QEMU_QEMU_DRIVER_H_
#define FORKD_VMM_QEMU_QEMU_DRIVER_H_

#include <memory>
#include <string>

#include "base/async.h"
#include "base/blocking_pool.h"
#include "vmm/launcher/launcher.h"
#include "vmm/vmm.h"

namespace forkd::vmm {

struct QemuOptions {
  // Absolute path of the full system emulator (it has -sandbox and TCG).
  std::string binary = "/usr/bin/qemu-system-x86_64";
  Accelerator accelerator = Accelerator::kTcg;
  // How the VMMs are walled in. kNone is for tests that look into a VMM from outside.
  Walls walls = Walls::kJail;
};

// Runs `options.binary --version` and measures the TSC (tens of ms). FAILED_PRECONDITION (HOST_MISSING) if it is missing or too old. `executor`
// is the runtime's; `pool` and `launcher` must outlive the driver and its VMs; the driver must outlive its VMs.
absl::StatusOr<std::unique_ptr<VmDriver>> CreateQemuDriverBlocking(QemuOptions options, Executor executor, BlockingPool* pool, Launcher* launcher);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_QEMU_QEMU_DRIVER_H_
