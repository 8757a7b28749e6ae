// The forkctl program itself, on a terminal of its own.
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"
#include "cli/testing/fake_daemon.h"

namespace forkd::cli {
namespace {

constexpr std::chrono::seconds kPatience(20);

// forkctl as a child on a pseudo-terminal of 31 × 97.
class TerminalSession {
 public:
  TerminalSession(const std::string& address, std::vector<std::string> arguments) {
    winsize size = {.ws_row = 31, .ws_col = 97, .ws_xpixel = 0, .ws_ypixel = 0};
    int controller = -1;
    int terminal = -1;
    EXPECT_EQ(::openpty(&controller, &terminal, nullptr, nullptr, &size), 0);
    controller_.reset(controller);
    terminal_.reset(terminal);
    ::tcgetattr(terminal, &before_);
    arguments.insert(arguments.begin(), "cli/forkctl");
    std::vector<char*> argv;
    for (std::string& argument : arguments) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    ::setenv("FORKD_ADDRESS", address.c_str(), 1);
    pid_ = ::fork();
    if (pid_ == 0) {
      // Only async-signal-safe calls: the test has threads.
      ::setsid();
      ::ioctl(terminal, TIOCSCTTY, 0);
      ::dup2(terminal, STDIN_FILENO);
      ::dup2(terminal, STDOUT_FILENO);
      ::dup2(terminal, STDERR_FILENO);
      ::execv(argv[0], argv.data());
      ::_exit(126);
    }
  }
  ~TerminalSession() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  // Reads until the screen has `text`. False if it does not come.
  bool Expect(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!absl::StrContains(screen_, text)) {
      pollfd readable = {controller_.get(), POLLIN, 0};
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
      if (left <= 0 || ::poll(&readable, 1, static_cast<int>(left)) <= 0) {
        ADD_FAILURE() << "\"" << text << "\" did not come; the screen shows: " << screen_;
        return false;
      }
      char buffer[4096];
      const ssize_t got = ::read(controller_.get(), buffer, sizeof(buffer));
      if (got <= 0) {
        return false;
      }
      screen_.append(buffer, static_cast<size_t>(got));
    }
    return true;
  }
  void Type(const std::string& keys) { EXPECT_EQ(::write(controller_.get(), keys.data(), keys.size()), static_cast<ssize_t>(keys.size())); }
  void Resize(unsigned short rows, unsigned short columns) {
    const winsize size = {.ws_row = rows, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    EXPECT_EQ(::ioctl(controller_.get(), TIOCSWINSZ, &size), 0);
  }
  void Signal(int number) { ::kill(pid_, number); }
  bool IsRaw() {
    termios now;
    ::tcgetattr(terminal_.get(), &now);
    return (now.c_lflag & (ICANON | ECHO)) == 0;
  }
  bool IsAsBefore() {
    termios now;
    ::tcgetattr(terminal_.get(), &now);
    return now.c_lflag == before_.c_lflag && now.c_iflag == before_.c_iflag && now.c_oflag == before_.c_oflag;
  }
  // Exit status; -N if a signal ended it.
  int Wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  UniqueFd controller_;
  UniqueFd terminal_;
  termios before_ = {};
  pid_t pid_ = -1;
  std::string screen_;
};

TEST(TerminalTest, KeysSizesAndTheExitStatusPassThrough) {
  FakeDaemon daemon;
  TerminalSession session(daemon.address(), {"exec", "-it", "sb-65f0a1b2-0001", "--", "bash"});
  ASSERT_TRUE(session.Expect("size 31x97\r\n"));
  session.Type("\x03");
  ASSERT_TRUE(session.Expect("got 1 byte 3\r\n")) << "^C belongs to the program";
  EXPECT_TRUE(session.IsRaw());
  session.Resize(40, 120);
  ASSERT_TRUE(session.Expect("resized 40x120\r\n"));
  session.Type("q");
  EXPECT_EQ(session.Wait(), 7);
  EXPECT_TRUE(session.IsAsBefore());
}

TEST(TerminalTest, SignalGoesToTheProgramAndTheTerminalIsRestored) {
  FakeDaemon daemon;
  TerminalSession session(daemon.address(), {"exec", "-it", "sb-65f0a1b2-0001", "--", "bash"});
  ASSERT_TRUE(session.Expect("size 31x97\r\n"));
  session.Type("x");
  ASSERT_TRUE(session.Expect("got 1 byte 120\r\n"));
  session.Signal(SIGTERM);
  ASSERT_TRUE(session.Expect("signal 15"));
  EXPECT_EQ(session.Wait(), 128 + 15);
  EXPECT_TRUE(session.IsAsBefore());
}

TEST(TerminalTest, SignalBeforeTheProgramRunsEndsForkctl) {
  FakeDaemon daemon;
  TerminalSession session(daemon.address(), {"exec", "-it", "sb-65f0a1b2-0001", "--", "never-starts"});
  daemon.sandboxes().AwaitStream();
  session.Type("\x03");
  EXPECT_EQ(session.Wait(), 128 + SIGINT);
  EXPECT_TRUE(session.IsAsBefore());
}

TEST(TerminalTest, ThirdSignalGivesUpOnAProgramThatIgnoresThem) {
  FakeDaemon daemon;
  TerminalSession session(daemon.address(), {"exec", "-it", "sb-65f0a1b2-0001", "--", "stubborn"});
  ASSERT_TRUE(session.Expect("size 31x97\r\n"));
  session.Signal(SIGTERM);
  ASSERT_TRUE(session.Expect("ignored 15"));
  session.Signal(SIGHUP);
  ASSERT_TRUE(session.Expect("ignored 1\r"));
  session.Signal(SIGTERM);
  EXPECT_EQ(session.Wait(), 128 + SIGTERM);
  EXPECT_TRUE(session.IsAsBefore());
}

TEST(TerminalTest, LostDaemonRestoresTheTerminal) {
  auto daemon = std::make_unique<FakeDaemon>();
  TerminalSession session(daemon->address(), {"exec", "-it", "sb-65f0a1b2-0001", "--", "bash"});
  ASSERT_TRUE(session.Expect("size 31x97\r\n"));
  session.Type("x");
  ASSERT_TRUE(session.Expect("got 1 byte 120\r\n"));
  daemon->StopNow();
  EXPECT_EQ(session.Wait(), 1);
  EXPECT_TRUE(session.IsAsBefore());
}

TEST(TerminalTest, WaitsLongerThanASecondAreShownOnATerminal) {
  FakeDaemon daemon;
  TerminalSession session(daemon.address(), {"sandbox", "get", "slow", "--timeout", "2500ms"});
  EXPECT_TRUE(session.Expect("forkctl sandbox get: waiting, 1 s"));
  EXPECT_TRUE(session.Expect("\r\x1b[K"));
  EXPECT_EQ(session.Wait(), 1);
}

TEST(TerminalTest, AddressComesFromTheEnvironment) {
  FakeDaemon daemon;
  TerminalSession session(daemon.address(), {"ls"});
  EXPECT_TRUE(session.Expect("sb-65f0a1b2-0002"));
  EXPECT_EQ(session.Wait(), 0);
}

}  // namespace
}  // namespace forkd::cli
