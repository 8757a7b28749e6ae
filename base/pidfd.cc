#include "base/pidfd.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"

namespace forkd {
namespace {

absl::Status NoSuchProcess(pid_t pid) {
  return Error(absl::StatusCode::kNotFound, Reason::kSystemCall, absl::StrCat("process ", pid, " does not exist any more"));
}

absl::StatusOr<ProcStat> ReadProcStat(pid_t pid) {
  const UniqueFd fd(::open(absl::StrCat("/proc/", pid, "/stat").c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) { return NoSuchProcess(pid); }
  // The kernel's line is below 1 KiB: 52 numbers and a name of at most 64 bytes.
  char text[2048];
  const ssize_t length = ::read(fd.get(), text, sizeof(text));
  if (length <= 0) { return NoSuchProcess(pid); }
  const std::optional<ProcStat> stat = ParseProcStat(absl::string_view(text, static_cast<std::size_t>(length)));
  if (!stat.has_value()) {
    return Error(absl::StatusCode::kInternal, Reason::kSystemCall, absl::StrCat("/proc/", pid, "/stat has an unknown form"));
  }
  return *stat;
}

}  // namespace

std::optional<ProcStat> ParseProcStat(absl::string_view text) {
  // proc(5): "pid (comm) state ppid …". comm ends at the last ')'.
  const std::size_t comm_end = text.rfind(')');
  if (comm_end == absl::string_view::npos || comm_end + 2 >= text.size()) { return std::nullopt; }
  const std::vector<absl::string_view> fields = absl::StrSplit(text.substr(comm_end + 2), ' ');
  // Field 3 (state) is fields[0]; field 22 (starttime) is fields[19].
  constexpr std::size_t kStartTime = 22 - 3;
  ProcStat stat;
  if (fields.size() <= kStartTime || fields[0].size() != 1 || !absl::SimpleAtoi(fields[kStartTime], &stat.start_time_ticks)) { return std::nullopt; }
  stat.state = fields[0][0];
  return stat;
}

absl::StatusOr<ProcessId> Pidfd::IdentityOf(pid_t pid) {
  const absl::StatusOr<ProcStat> stat = ReadProcStat(pid);
  if (!stat.ok()) { return stat.status(); }
  return ProcessId{.pid = pid, .start_time_ticks = stat->start_time_ticks};
}

absl::StatusOr<Pidfd> Pidfd::Open(ProcessId id) {
  if (id.pid <= 0) { return NoSuchProcess(id.pid); }
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, id.pid, 0)));
  if (!fd.valid()) {
    if (errno == ESRCH) { return NoSuchProcess(id.pid); }
    return ErrnoError(errno, absl::StrCat("open a pidfd of process ", id.pid));
  }
  // Compared after the descriptor is held: from here on the pid cannot be given to another without our descriptor showing an end.
  const absl::StatusOr<ProcStat> stat = ReadProcStat(id.pid);
  if (!stat.ok()) { return stat.status(); }
  if (stat->start_time_ticks != id.start_time_ticks || stat->state == 'Z' || stat->state == 'X') { return NoSuchProcess(id.pid); }
  Pidfd opened(std::move(fd));
  if (opened.HasExited()) { return NoSuchProcess(id.pid); }
  return opened;
}

absl::Status Pidfd::SendSignal(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0) == 0 || errno == ESRCH) { return absl::OkStatus(); }
  return ErrnoError(errno, absl::StrCat("send signal ", signal));
}

bool Pidfd::HasExited() const {
  pollfd entry{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, 0) == 1;
}

std::optional<int> Pidfd::ReapIfExited() const {
  siginfo_t info{};
  if (::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(fd_.get()), &info, WEXITED | WNOHANG) != 0 || info.si_pid == 0) { return std::nullopt; }
  // Back to waitpid's encoding, for the W… macros.
  if (info.si_code == CLD_EXITED) { return (info.si_status & 0xff) << 8; }
  return (info.si_status & 0x7f) | (info.si_code == CLD_DUMPED ? 0x80 : 0);
}

absl::StatusOr<UniqueFd> Pidfd::DuplicateFd(int target) const {
  // The kernel sets O_CLOEXEC on the duplicate.
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, fd_.get(), target, 0)));
  if (fd.valid()) { return fd; }
  if (errno == EBADF || errno == ESRCH) {
    return Error(absl::StatusCode::kNotFound, Reason::kSystemCall, absl::StrCat("the process has ended or has no descriptor ", target));
  }
  return ErrnoError(errno, absl::StrCat("duplicate descriptor ", target, " of a process"));
}

}  // namespace forkd
