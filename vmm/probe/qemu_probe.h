// Is QEMU installed, and which one?
#ifndef FORKD_VMM_PROBE_QEMU_PROBE_H_
#define FORKD_VMM_PROBE_QEMU_PROBE_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::vmm {

struct QemuVersion {
  int major = 0;
  int minor = 0;
  std::string text;  // as QEMU prints it after "version ", distribution's suffix included
};

// Pure: out of what `qemu-system-x86_64 --version` prints.
std::optional<QemuVersion> ParseQemuVersion(absl::string_view output);
// Runs it, ≤ 5 s. FAILED_PRECONDITION (HOST_MISSING), which says what to install, if it is not there, does not run, or is older than 7.2.
absl::StatusOr<QemuVersion> ProbeQemuBlocking(const std::string& binary);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_PROBE_QEMU_PROBE_H_
