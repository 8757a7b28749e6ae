#include "base/pidfd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

namespace forkd {
namespace {

class Child {
 public:
  Child() : pid_(::fork()) {
    if (pid_ == 0) {
      for (;;) { ::pause(); }
    }
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

TEST(ParseProcStat, FindsTheStartTimeBehindAHostileName) {
  const std::optional<ProcStat> stat = ParseProcStat("12 (a) R 9 (b)) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 100 1 18446744073709551615\n");
  ASSERT_TRUE(stat.has_value());
  EXPECT_EQ(stat->state, 'S');
  EXPECT_EQ(stat->start_time_ticks, 987654u);
}

TEST(ParseProcStat, RefusesTextsOfAnotherForm) {
  for (const absl::string_view text : {"", "12", "12 (a)", "12 (a) ", "12 (a) S 1 2 3", "12 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20"}) {
    EXPECT_FALSE(ParseProcStat(text).has_value()) << text;
  }
}

TEST(Pidfd, RefusesAProcessWithAnotherStartTime) {
  const Child child;
  ProcessId id = *Pidfd::IdentityOf(child.pid());
  EXPECT_TRUE(Pidfd::Open(id).ok());
  ++id.start_time_ticks;
  EXPECT_EQ(Pidfd::Open(id).status().code(), absl::StatusCode::kNotFound);
}

TEST(Pidfd, RefusesPidsThatNameNoProcess) {
  EXPECT_EQ(Pidfd::Open({.pid = 0}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Pidfd::Open({.pid = -1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Pidfd::IdentityOf(1 << 22).status().code(), absl::StatusCode::kNotFound);
}

TEST(Pidfd, KillsAndReaps) {
  const pid_t pid = ::fork();
  if (pid == 0) { ::pause(); }
  const Pidfd pidfd = *Pidfd::Open(*Pidfd::IdentityOf(pid));
  EXPECT_FALSE(pidfd.HasExited());
  EXPECT_EQ(pidfd.ReapIfExited(), std::nullopt);
  ASSERT_TRUE(pidfd.SendSignal(SIGKILL).ok());
  std::optional<int> status;
  while (!(status = pidfd.ReapIfExited()).has_value()) {}
  EXPECT_TRUE(WIFSIGNALED(*status));
  EXPECT_EQ(WTERMSIG(*status), SIGKILL);
  EXPECT_TRUE(pidfd.SendSignal(SIGKILL).ok()) << "killing the dead is not an error";
  EXPECT_EQ(pidfd.ReapIfExited(), std::nullopt);
}

TEST(Pidfd, DuplicatesADescriptorOfAnotherProcess) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const UniqueFd reader(pipe_ends[0]);
  UniqueFd writer(pipe_ends[1]);
  const Child child;
  const int number = writer.get();
  writer.reset();
  const Pidfd pidfd = *Pidfd::Open(*Pidfd::IdentityOf(child.pid()));
  const absl::StatusOr<UniqueFd> duplicate = pidfd.DuplicateFd(number);
  ASSERT_TRUE(duplicate.ok()) << duplicate.status();
  EXPECT_EQ(::write(duplicate->get(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(reader.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
  EXPECT_EQ(pidfd.DuplicateFd(12345).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace forkd
