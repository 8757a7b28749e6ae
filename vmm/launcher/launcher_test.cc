#include "vmm/launcher/launcher.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"

namespace forkd::vmm {
namespace {

// What the process wrote to standard error, once it has ended; its wait status in `status`.
std::string RunToEnd(SpawnedProcess process, int* status) {
  pollfd entry{.fd = process.pidfd.fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&entry, 1, 20'000), 1) << "it does not end";
  *status = process.pidfd.ReapIfExited().value_or(-1);
  std::string text;
  char buffer[4096];
  for (ssize_t got; (got = ::read(process.stderr_read.get(), buffer, sizeof(buffer))) > 0;) { text.append(buffer, static_cast<std::size_t>(got)); }
  return text;
}

std::string RunShell(const std::string& script, std::vector<InheritedFd> inherited = {}) {
  Launcher launcher;
  auto process = launcher.Spawn({.argv = {"/bin/sh", "-c", script}, .inherited = std::move(inherited), .run_dir = "/run/x", .max_open_files = 77});
  EXPECT_TRUE(process.ok()) << process.status();
  if (!process.ok()) { return ""; }
  int status = 0;
  std::string text = RunToEnd(*std::move(process), &status);
  EXPECT_EQ(status, 0) << text;
  return text;
}

int OpenDescriptors() {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator()));
}

TEST(Launcher, TheProcessHasWhatIsNamedAndNothingElse) {
  const UniqueFd leak(::open("/dev/zero", O_RDONLY));  // not close-on-exec, on purpose
  const UniqueFd wanted(::open("/etc/hostname", O_RDONLY | O_CLOEXEC));
  const std::string text = RunShell("ls -l /proc/self/fd | sed 's/.* \\([0-9]* ->\\)/\\1/' >&2", {{wanted.get(), 42}});
  EXPECT_TRUE(absl::StrContains(text, "42 -> /etc/hostname")) << text;
  EXPECT_TRUE(absl::StrContains(text, "0 -> /dev/null")) << text;
  EXPECT_FALSE(absl::StrContains(text, "/dev/zero")) << text;
  EXPECT_FALSE(absl::StrContains(text, "memfd")) << text;
}

TEST(Launcher, DescriptorsMayTradeNumbers) {
  // Sources whose own numbers are others' targets: moved one after another they would overwrite each other.
  UniqueFd a(::open("/etc/hostname", O_RDONLY | O_CLOEXEC));
  UniqueFd b(::open("/etc/passwd", O_RDONLY | O_CLOEXEC));
  const std::string text = RunShell(absl::StrCat("ls -l /proc/self/fd >&2"), {{a.get(), b.get()}, {b.get(), a.get()}});
  EXPECT_TRUE(absl::StrContains(text, absl::StrCat(" ", b.get(), " -> /etc/hostname"))) << text;
  EXPECT_TRUE(absl::StrContains(text, absl::StrCat(" ", a.get(), " -> /etc/passwd"))) << text;
}

TEST(Launcher, LimitsSessionAndEnvironment) {
  ::setenv("FORKD_TEST_SECRET", "hush", 1);
  const std::string text = RunShell("ulimit -n >&2; ulimit -c >&2; env >&2; echo sid=$(cut -d' ' -f6 /proc/$$/stat) pid=$$ >&2; umask >&2");
  EXPECT_TRUE(absl::StartsWith(text, "77\n0\n")) << text;
  EXPECT_FALSE(absl::StrContains(text, "hush")) << text;
  EXPECT_TRUE(absl::StrContains(text, "FORKD_RUN_DIR=/run/x\n")) << text;
  EXPECT_TRUE(absl::StrContains(text, "0077")) << text;
  std::string sid;
  std::string pid;
  for (const absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" \n"))) {
    if (absl::StartsWith(word, "sid=")) { sid = std::string(word.substr(4)); }
    if (absl::StartsWith(word, "pid=")) { pid = std::string(word.substr(4)); }
  }
  EXPECT_FALSE(pid.empty());
  EXPECT_EQ(sid, pid) << "a session of its own: a terminal's hang-up does not reach it";
}

TEST(Launcher, IgnoredAndBlockedSignalsAreNotInherited) {
  ::signal(SIGPIPE, SIG_IGN);
  const std::string text = RunShell("grep -E 'SigBlk|SigIgn' /proc/self/status >&2");
  ::signal(SIGPIPE, SIG_DFL);
  // Bits of the signals 32 and 33 are glibc's own and not ours to change.
  EXPECT_TRUE(absl::StartsWith(text, "SigBlk:\t0000000000000000\nSigIgn:\t")) << text;
  EXPECT_TRUE(absl::EndsWith(text, "00000000\n") || absl::EndsWith(text, "80000000\n")) << text;
}

TEST(Launcher, SaysWhichStepFailed) {
  Launcher launcher;
  const int before = OpenDescriptors();
  const absl::Status missing = launcher.Spawn({.argv = {"/no/such/program"}}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound) << missing;
  EXPECT_TRUE(absl::StrContains(missing.message(), "/no/such/program"));
  EXPECT_EQ(launcher.Spawn({.argv = {"/etc/passwd"}}).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_FALSE(launcher.Spawn({.argv = {}}).ok());
  EXPECT_FALSE(launcher.Spawn({.argv = {"sh"}}).ok()) << "no search by PATH";
  EXPECT_FALSE(launcher.Spawn({.argv = {"/bin/sh"}, .inherited = {{0, 2}}}).ok());
  EXPECT_FALSE(launcher.Spawn({.argv = {"/bin/sh"}, .inherited = {{0, 5}, {1, 5}}}).ok());
  EXPECT_FALSE(launcher.Spawn({.argv = {"/bin/sh"}, .inherited = {{9999, 5}}}).ok());
  EXPECT_FALSE(launcher.Spawn({.argv = {"/bin/sh", std::string("a\0b", 3)}}).ok());
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "no child is left";
}

TEST(Launcher, AFullStandardErrorDoesNotHoldAProcessUp) {
  Launcher launcher;
  auto process = launcher.Spawn({.argv = {"/bin/sh", "-c", "head -c 1000000 /dev/zero >&2; exit 3"}});
  ASSERT_TRUE(process.ok()) << process.status();
  int status = 0;
  const std::string text = RunToEnd(*std::move(process), &status);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 3);
  EXPECT_LE(text.size(), 65536u + 200);
}

TEST(Launcher, KillsOnlyStraysOfItsOwnFolder) {
  Launcher launcher;
  const auto spawn = [&](const std::string& run_dir) { return *launcher.Spawn({.argv = {"/bin/sleep", "1000"}, .run_dir = run_dir}); };
  SpawnedProcess stray = spawn("/tmp/forkd-launcher-test/run/a");
  SpawnedProcess kept = spawn("/tmp/forkd-launcher-test/run/b");
  SpawnedProcess elsewhere = spawn("/tmp/forkd-launcher-test-other/run/c");
  EXPECT_EQ(launcher.KillStrays("/tmp/forkd-launcher-test/run/", {kept.id.pid}), 1);
  EXPECT_TRUE(stray.pidfd.HasExited());
  EXPECT_FALSE(kept.pidfd.HasExited());
  EXPECT_FALSE(elsewhere.pidfd.HasExited());
  EXPECT_EQ(launcher.KillStrays("", {}), 0) << "no prefix names nobody";
  for (SpawnedProcess* process : {&kept, &elsewhere}) {
    EXPECT_TRUE(launcher.Kill(process->pidfd).ok());
    pollfd entry{.fd = process->pidfd.fd(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
    EXPECT_TRUE(process->pidfd.ReapIfExited().has_value());
  }
}

TEST(Launcher, FindsTheRootImageOfAProcessThatItAdopts) {
  Launcher launcher;
  const RootImage root = *RootImage::CreateBlocking("adopt", 1 << 20);
  SpawnedProcess process = *launcher.Spawn({.argv = {"/bin/sleep", "1000"}, .inherited = {{root.fd(), 10}}});
  const absl::StatusOr<Pidfd> adopted = launcher.OpenProcess(process.id);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  const absl::StatusOr<RootImage> found = launcher.OpenRootImage(*adopted, 10);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->inode(), root.inode());
  EXPECT_EQ(launcher.OpenRootImage(*adopted, 11).status().code(), absl::StatusCode::kNotFound);
  const absl::Status none = launcher.CollectDivergedPages(process.id, root).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kFailedPrecondition) << "it maps no copy";
  EXPECT_TRUE(launcher.Kill(process.pidfd).ok());
  pollfd entry{.fd = process.pidfd.fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
  EXPECT_TRUE(process.pidfd.ReapIfExited().has_value());
  EXPECT_EQ(launcher.OpenProcess(process.id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(launcher.CollectDivergedPages(process.id, root).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace forkd::vmm
