#include "vmm/qemu/qemu_args.h"

#include "absl/strings/str_cat.h"

namespace forkd::vmm {
namespace {

enum class Sharing { kShared, kPrivate };

void Append(std::vector<std::string>* args, std::initializer_list<std::string> more) { args->insert(args->end(), more); }

std::vector<std::string> CommonArgs(const QemuMachine& machine, Sharing sharing) {
  std::vector<std::string> args = {machine.binary};
  // -no-user-config and -nodefaults: nothing but what is named here.
  Append(&args, {"-name", absl::StrCat("forkd-", machine.id), "-no-user-config", "-nodefaults", "-display", "none"});
  // A reset would start the firmware of a child that has no kernel: it ends the VM, and the exit says why.
  Append(&args, {"-no-reboot"});
  // spawn=deny: no exec: migration, no helpers. All it needs it is born with or sent.
  Append(&args, {"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"});
  // mem-merge: page merging between tenants is a side channel. dump-guest-core: guest memory belongs in no core file.
  Append(&args, {"-machine", absl::StrCat(QemuMachineLine(machine.accelerator), ",memory-backend=mem,mem-merge=off,dump-guest-core=off")});
  // tb-size: QEMU would take a quarter of the host's memory for translated code.
  Append(&args, {"-accel", machine.accelerator == Accelerator::kKvm ? "kvm" : "tcg,tb-size=32"});
  Append(&args, {"-cpu", QemuCpuModel(machine.accelerator)});
  Append(&args, {"-smp", absl::StrCat(machine.shape.vcpus)});
  Append(&args, {"-m", absl::StrCat(machine.shape.memory_mib, "M")});
  Append(&args, {"-object", absl::StrCat("memory-backend-file,id=mem,size=", machine.shape.memory_mib, "M,mem-path=/proc/self/fd/", kRamTarget,
                                         ",share=", sharing == Sharing::kShared ? "on" : "off", ",merge=off,dump=off")});
  Append(&args, {"-chardev", absl::StrCat("socket,id=qmp,fd=", kQmpTarget, ",server=on,wait=off"), "-mon", "chardev=qmp,mode=control"});
  // The console is a ring in memory: a guest cannot fill a disk with it.
  Append(&args, {"-chardev", "ringbuf,id=console,size=65536", "-serial", "chardev:console"});
  Append(&args, {"-chardev", absl::StrCat("socket,id=agent,fd=", kAgentTarget, ",server=on,wait=off")});
  if (machine.has_rootfs) {
    // locking=off: every VM of the image has the same open file; nobody writes it.
    Append(&args, {"-add-fd", absl::StrCat("fd=", kRootfsTarget, ",set=1")});
    Append(&args, {"-blockdev", "driver=file,node-name=rootfs-file,filename=/dev/fdset/1,read-only=on,locking=off"});
    Append(&args, {"-blockdev", "driver=raw,node-name=rootfs,file=rootfs-file,read-only=on"});
  }
  for (const std::string& device : QemuDevices(machine.has_rootfs)) { Append(&args, {"-device", device}); }
  return args;
}

}  // namespace

std::string QemuMachineLine(Accelerator accelerator) {
  // Every value by name: automatic ones depend on the accelerator, and most mismatches at load go unnoticed.
  const std::string line = "microvm,acpi=on,rtc=on,pit=on,pic=on,pcie=off,isa-serial=on";
  // split: PIC, PIT and IOAPIC in QEMU, the LAPIC in KVM. With all of it in KVM a restored guest that idled took an interrupt with vector 0
  // (seen on a KVM without hardware virtualisation); and less of the host kernel is open to the guest.
  return accelerator == Accelerator::kKvm ? line + ",kernel-irqchip=split" : line;
}

std::string QemuCpuModel(Accelerator accelerator) {
  // arch-capabilities: QEMU 7.2 sets an MSR for it that a KVM without hardware virtualisation refuses, and aborts.
  return accelerator == Accelerator::kKvm ? "host,-arch-capabilities" : "max";
}

std::vector<std::string> QemuDevices(bool has_rootfs) {
  std::vector<std::string> devices = {"virtio-serial-device", "virtserialport,chardev=agent,name=forkd.agent"};
  if (has_rootfs) { devices.push_back("virtio-blk-device,drive=rootfs"); }
  devices.push_back("virtio-rng-device");
  return devices;
}

std::vector<std::string> QemuParentArgs(const QemuMachine& machine, bool has_initrd, const std::string& kernel_args) {
  std::vector<std::string> args = CommonArgs(machine, Sharing::kShared);
  Append(&args, {"-S", "-kernel", absl::StrCat("/proc/self/fd/", kKernelTarget), "-append", kernel_args});
  if (has_initrd) { Append(&args, {"-initrd", absl::StrCat("/proc/self/fd/", kInitrdTarget)}); }
  return args;
}

std::vector<std::string> QemuChildArgs(const QemuMachine& machine) {
  std::vector<std::string> args = CommonArgs(machine, Sharing::kPrivate);
  // send-configuration=off: the stream of xen-save-devices-state has no configuration section; the manifest's MachineRecord stands for it.
  Append(&args, {"-S", "-incoming", "defer", "-global", "migration.send-configuration=off", "-global", "migration.x-events=on"});
  return args;
}

}  // namespace forkd::vmm
