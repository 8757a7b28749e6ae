// QEMU's command line, as a pure function: the same machine for a parent and its children, but for what must differ.
#ifndef FORKD_VMM_QEMU_QEMU_ARGS_H_
#define FORKD_VMM_QEMU_QEMU_ARGS_H_

#include <string>
#include <vector>

#include "vmm/vmm.h"

namespace forkd::vmm {

// Numbers of the descriptors that a QEMU is born with. Fixed: the next daemon finds the root image of a VM that it adopts by its number.
inline constexpr int kRamTarget = 10;
inline constexpr int kQmpTarget = 11;
inline constexpr int kAgentTarget = 12;
inline constexpr int kRootfsTarget = 13;
inline constexpr int kKernelTarget = 14;
inline constexpr int kInitrdTarget = 15;

struct QemuMachine {
  std::string binary;
  Accelerator accelerator = Accelerator::kTcg;
  MachineShape shape;
  std::string id;
  bool has_rootfs = false;
};

// Parts that a device state depends on, as they stand on the command line and in the MachineRecord.
std::string QemuMachineLine(Accelerator accelerator);
std::string QemuCpuModel(Accelerator accelerator);
// In the order of their slots.
std::vector<std::string> QemuDevices(bool has_rootfs);

// A parent: its RAM is the root image itself; starts stopped.
std::vector<std::string> QemuParentArgs(const QemuMachine& machine, bool has_initrd, const std::string& kernel_args);
// A child: its RAM is a private copy of the root image; waits for a device state. No kernel: it is not needed after a restore, and costs 14 MB
// of private memory and a third of the start time.
std::vector<std::string> QemuChildArgs(const QemuMachine& machine);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_QEMU_QEMU_ARGS_H_
