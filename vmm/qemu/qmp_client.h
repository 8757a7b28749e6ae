// QEMU's control socket, from the daemon's side. I/O thread only.
#ifndef FORKD_VMM_QEMU_QMP_CLIENT_H_
#define FORKD_VMM_QEMU_QMP_CLIENT_H_

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/async.h"
#include "base/deadline.h"
#include "base/unique_fd.h"
#include "vmm/qemu/qmp_reply.h"

namespace forkd::vmm {

// Commands may overlap; QEMU takes them in order. A deadline that passes ends the wait, not the command: it may still take effect, and its late
// answer is passed over, because a caller in a hurry must not cost a VM its life. No answer `patience` after that, an unknown reply, or an end of
// the stream break the connection for good: what waits and what comes later then answers with that error.
class QmpClient {
 public:
  struct Handlers {
    absl::AnyInvocable<void(const QmpEvent&)> on_event;
    // Once, with the error that broke the connection; not after the destructor.
    absl::AnyInvocable<void(const absl::Status&)> on_broken;
    std::chrono::milliseconds patience = std::chrono::seconds(30);
  };

  // Takes a connected stream socket; waits for the greeting and negotiates. UNAVAILABLE (VMM_FAILED) if the socket is closed meanwhile.
  static Task<absl::StatusOr<std::unique_ptr<QmpClient>>> Open(UniqueFd socket, Handlers handlers, Deadline deadline);
  ~QmpClient();
  QmpClient(const QmpClient&) = delete;
  QmpClient& operator=(const QmpClient&) = delete;

  // `arguments` is an object; `fd` (borrowed, -1 for none) travels with the command. INTERNAL (VMM_FAILED) with QEMU's own words if it refuses.
  Task<absl::StatusOr<nlohmann::json>> Execute(std::string command, nlohmann::json arguments, Deadline deadline, int fd = -1);

 private:
  struct State;
  explicit QmpClient(std::shared_ptr<State> state);
  struct Pending;
  static Task<void> Read(std::shared_ptr<State> state);
  static Task<void> BreakUnlessAnswered(std::shared_ptr<State> state, std::shared_ptr<Pending> pending, absl::Status late);
  static Task<absl::StatusOr<nlohmann::json>> ExecuteOn(std::shared_ptr<State> state, std::string command, nlohmann::json arguments,
                                                        Deadline deadline, int fd);
  std::shared_ptr<State> state_;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_QEMU_QMP_CLIENT_H_
