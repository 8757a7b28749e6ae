// A process by descriptor, so that a recycled pid is never mistaken for it.
#ifndef FORKD_BASE_PIDFD_H_
#define FORKD_BASE_PIDFD_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"

namespace forkd {

// Names a process across restarts of the daemon: the pid alone may have been given to another process since.
struct ProcessId {
  pid_t pid = 0;
  // Field 22 of /proc/PID/stat: clock ticks after boot.
  uint64_t start_time_ticks = 0;
  friend bool operator==(const ProcessId&, const ProcessId&) = default;
};

class Pidfd {
 public:
  Pidfd() = default;
  // Takes a descriptor made by pidfd_open or clone(CLONE_PIDFD).
  explicit Pidfd(UniqueFd fd) : fd_(std::move(fd)) {}
  // NOT_FOUND if no process has that pid, or a different one has it now (the start time differs), or it is a zombie.
  static absl::StatusOr<Pidfd> Open(ProcessId id);
  // The id of a live process. NOT_FOUND if there is none.
  static absl::StatusOr<ProcessId> IdentityOf(pid_t pid);

  int fd() const { return fd_.get(); }
  bool valid() const { return fd_.valid(); }
  // OK also if the process has ended already.
  absl::Status SendSignal(int signal) const;
  // True if the process has ended (it may be a zombie still). Never blocks.
  bool HasExited() const;
  // Reaps an ended child and gives its wait status as waitpid(2) has it; nullopt if it has not ended, or is not our child. Never blocks.
  std::optional<int> ReapIfExited() const;
  // A duplicate of the process's descriptor number `target` (pidfd_getfd); needs ptrace rights over it. NOT_FOUND if it has no such number.
  absl::StatusOr<UniqueFd> DuplicateFd(int target) const;

 private:
  UniqueFd fd_;
};

// Pure: state letter and start time out of the text of /proc/PID/stat, whose second field may hold any byte, parentheses and spaces included.
struct ProcStat {
  char state = '?';
  uint64_t start_time_ticks = 0;
};
std::optional<ProcStat> ParseProcStat(absl::string_view text);

}  // namespace forkd

#endif  // FORKD_BASE_PIDFD_H_
