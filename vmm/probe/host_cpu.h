// The host's CPU, as far as a device state depends on it.
#ifndef FORKD_VMM_PROBE_HOST_CPU_H_
#define FORKD_VMM_PROBE_HOST_CPU_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace forkd::vmm {

// Pure: "vendor family/model/stepping: flags" of the first processor in the text of /proc/cpuinfo, flags sorted. "unknown" if it has none.
std::string ParseHostCpu(absl::string_view cpuinfo);
std::string HostCpuBlocking();

// The frequency of the time-stamp counter in kHz, measured over 30 ms against CLOCK_MONOTONIC_RAW. A kernel on a microvm has nothing to
// calibrate it by and would hang in early boot now and then. 0 on a machine that is not x86-64.
int64_t MeasureTscKhzBlocking();

}  // namespace forkd::vmm

#endif  // FORKD_VMM_PROBE_HOST_CPU_H_
