// The two Unix sockets of a VM in its run folder: QEMU's control socket and the agent's port.
#ifndef FORKD_VMM_QEMU_RUN_SOCKETS_H_
#define FORKD_VMM_QEMU_RUN_SOCKETS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace forkd::vmm {

inline constexpr char kQmpSocketName[] = "qmp.sock";
inline constexpr char kAgentSocketName[] = "agent.sock";

// All of these address the socket through the folder's descriptor, so that the folder's path may be longer than a socket address (108 bytes).
// None blocks for longer than a few system calls.

// A listening socket, bound to run_dir/name with mode 0600; one of that name that is left over is removed first. Close-on-exec.
absl::StatusOr<UniqueFd> ListenInRunDir(const std::string& run_dir, const char* name);
// A connected socket, non-blocking and close-on-exec. UNAVAILABLE (VMM_FAILED) if nobody listens or too many wait.
absl::StatusOr<UniqueFd> ConnectInRunDir(const std::string& run_dir, const char* name);
// Removes both; what is not there is no error.
void RemoveRunSockets(const std::string& run_dir);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_QEMU_RUN_SOCKETS_H_
