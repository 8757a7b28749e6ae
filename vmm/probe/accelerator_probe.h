// Can this host's KVM run the kernels that sandboxes boot? Asked by running ring-0 code, never by the device's existence: /dev/kvm of a host
// without hardware virtualisation opens, answers version 12, and then emulates ring 0 with instructions missing.
#ifndef FORKD_VMM_PROBE_ACCELERATOR_PROBE_H_
#define FORKD_VMM_PROBE_ACCELERATOR_PROBE_H_

#include <string>

namespace forkd::vmm {

struct AcceleratorProbe {
  bool usable = false;   // a stock Linux kernel will run at hardware speed
  bool present = false;  // /dev/kvm opens and makes a VM: guests made for it may run even if !usable
  std::string reason;    // for people: what was tried and what it answered
};

// Makes a VM by ioctl and runs long-mode ring-0 code in it: cmpxchg16b, int3 through an IDT, xsave/xrstor, and a loop of known length within a
// time limit. Blocking, at most about 2 s; no side effects. `device` is "/dev/kvm" but in tests.
AcceleratorProbe ProbeKvmBlocking(const std::string& device = "/dev/kvm");

}  // namespace forkd::vmm

#endif  // FORKD_VMM_PROBE_ACCELERATOR_PROBE_H_
