#include "vmm/probe/qemu_probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

namespace forkd::vmm {
namespace {

constexpr int kOldestMajor = 7;
constexpr int kOldestMinor = 2;
constexpr std::size_t kMaxOutputBytes = 4096;

absl::Status Missing(absl::string_view binary, absl::string_view why) {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
               absl::StrCat(Quoted(binary), " ", why, "; install it: apt-get install qemu-system-x86"))
      .Meta("program", binary);
}

// Standard output of `binary --version`; killed at the deadline.
absl::StatusOr<std::string> RunForVersion(const std::string& binary, Deadline deadline) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) { return ErrnoError(errno, "make a pipe"); }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, writer.get(), 1);
  ::posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  std::string program = binary;
  std::string flag = "--version";
  char* argv[] = {program.data(), flag.data(), nullptr};
  std::string path = "PATH=/usr/bin:/bin";
  char* environment[] = {path.data(), nullptr};
  pid_t pid = 0;
  const int spawn_error = ::posix_spawn(&pid, binary.c_str(), &actions, nullptr, argv, environment);
  ::posix_spawn_file_actions_destroy(&actions);
  writer.reset();
  if (spawn_error == ENOENT) { return Missing(binary, "does not exist"); }
  if (spawn_error != 0) { return Missing(binary, absl::StrCat("cannot be run (", ErrnoError(spawn_error, "execute").message(), ")")); }
  std::string output;
  while (output.size() < kMaxOutputBytes) {
    pollfd entry{.fd = reader.get(), .events = POLLIN, .revents = 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.Remaining()).count();
    if (::poll(&entry, 1, static_cast<int>(left)) <= 0) { break; }
    char buffer[1024];
    const ssize_t got = ::read(reader.get(), buffer, sizeof(buffer));
    if (got <= 0) { break; }
    output.append(buffer, static_cast<std::size_t>(got));
  }
  // Whatever has not ended by itself after all of its output does not end: no harm is done to one that has.
  if (deadline.Expired() || output.size() >= kMaxOutputBytes) { ::kill(pid, SIGKILL); }
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) { return Missing(binary, "does not run (--version failed)"); }
  return output;
}

}  // namespace

std::optional<QemuVersion> ParseQemuVersion(absl::string_view output) {
  // "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright …"
  constexpr absl::string_view kPrefix = "QEMU emulator version ";
  if (!absl::ConsumePrefix(&output, kPrefix)) { return std::nullopt; }
  QemuVersion version;
  version.text = std::string(output.substr(0, output.find('\n')));
  const std::vector<absl::string_view> numbers = absl::StrSplit(version.text, absl::MaxSplits(absl::ByAnyChar(". "), 2));
  if (numbers.size() < 2 || !absl::SimpleAtoi(numbers[0], &version.major) || !absl::SimpleAtoi(numbers[1], &version.minor)) { return std::nullopt; }
  return version;
}

absl::StatusOr<QemuVersion> ProbeQemuBlocking(const std::string& binary) {
  FORKD_ASSIGN_OR_RETURN(const std::string output, RunForVersion(binary, Deadline::In(std::chrono::seconds(5))));
  const std::optional<QemuVersion> version = ParseQemuVersion(output);
  if (!version.has_value()) { return Missing(binary, absl::StrCat("is no QEMU: it says ", Quoted(output))); }
  if (version->major < kOldestMajor || (version->major == kOldestMajor && version->minor < kOldestMinor)) {
    return Missing(binary, absl::StrCat("is QEMU ", version->text, ", older than ", kOldestMajor, ".", kOldestMinor));
  }
  return *version;
}

}  // namespace forkd::vmm
