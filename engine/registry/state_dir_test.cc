#include "engine/registry/state_dir.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd::engine {
namespace {

class StateDirTest : public ::testing::Test {
 protected:
  StateDirTest() {
    std::string dir = ::testing::TempDir() + "/state-XXXXXX";
    EXPECT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
  }
  ~StateDirTest() override { std::filesystem::remove_all(dir_); }
  std::string dir_;
};

TEST_F(StateDirTest, IsMadeForItsOwnerAloneWithItsParents) {
  const absl::StatusOr<StateDir> dir = StateDir::OpenBlocking(dir_ + "/a/b/forkd/");
  ASSERT_TRUE(dir.ok()) << dir.status();
  EXPECT_EQ(dir->path(), dir_ + "/a/b/forkd");
  struct stat status = {};
  ASSERT_EQ(::fstat(dir->fd(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0700u);
}

TEST_F(StateDirTest, FolderThatOthersMayWriteIsRefused) {
  ASSERT_EQ(::chmod(dir_.c_str(), 0720), 0);
  const absl::Status status = StateDir::OpenBlocking(dir_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "STATE_DIR_UNSAFE");
  EXPECT_NE(status.message().find("0720"), absl::string_view::npos);
}

TEST_F(StateDirTest, FolderOfAnotherUserIsRefused) {
  if (::geteuid() != 0) { GTEST_SKIP() << "needs root to give a folder away"; }
  ASSERT_EQ(::chown(dir_.c_str(), 12345, 12345), 0);
  const absl::Status status = StateDir::OpenBlocking(dir_).status();
  EXPECT_EQ(ReasonOf(status), "STATE_DIR_UNSAFE");
  EXPECT_NE(status.message().find("12345"), absl::string_view::npos);
}

TEST_F(StateDirTest, SymlinkAndFileAreRefused) {
  std::filesystem::create_directory(dir_ + "/real");
  std::filesystem::create_directory_symlink(dir_ + "/real", dir_ + "/link");
  EXPECT_EQ(ReasonOf(StateDir::OpenBlocking(dir_ + "/link").status()), "STATE_DIR_UNSAFE");
  ::fclose(::fopen((dir_ + "/file").c_str(), "w"));
  EXPECT_EQ(ReasonOf(StateDir::OpenBlocking(dir_ + "/file").status()), "STATE_DIR_UNSAFE");
}

TEST_F(StateDirTest, RelativePathIsRefused) {
  for (const char* path : {"", "state", "./state", "/", "//"}) { EXPECT_EQ(ReasonOf(StateDir::OpenBlocking(path).status()), "INVALID_FIELD") << path; }
}

TEST_F(StateDirTest, SecondDaemonIsRefusedAndToldWhoHoldsTheFolder) {
  const absl::StatusOr<StateDir> dir = StateDir::OpenBlocking(dir_);
  ASSERT_TRUE(dir.ok());
  {
    const absl::StatusOr<StateDirLock> first = StateDirLock::TakeBlocking(*dir);
    ASSERT_TRUE(first.ok()) << first.status();
    const absl::Status second = StateDirLock::TakeBlocking(*dir).status();
    EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(second), "STATE_DIR_IN_USE");
    EXPECT_NE(second.message().find(absl::StrCat("pid ", ::getpid())), absl::string_view::npos) << second;
  }
  EXPECT_TRUE(StateDirLock::TakeBlocking(*dir).ok());
}

TEST_F(StateDirTest, LockDiesWithItsProcessAndNotWithItsChildrenThatExeced) {
  const absl::StatusOr<StateDir> dir = StateDir::OpenBlocking(dir_);
  ASSERT_TRUE(dir.ok());
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t daemon = ::fork();
  if (daemon == 0) {
    // Takes the lock, starts a "VMM" that outlives it, tells its pid, and waits to be killed.
    const absl::StatusOr<StateDirLock> lock = StateDirLock::TakeBlocking(*dir);
    const pid_t vmm = lock.ok() ? ::fork() : -1;
    if (vmm == 0) {
      ::execlp("sleep", "sleep", "60", nullptr);
      ::_exit(1);
    }
    (void)!::write(ready[1], &vmm, sizeof vmm);
    for (;;) { ::pause(); }
  }
  pid_t vmm = -1;
  ASSERT_EQ(::read(ready[0], &vmm, sizeof vmm), static_cast<ssize_t>(sizeof vmm));
  ASSERT_GT(vmm, 0);
  EXPECT_EQ(ReasonOf(StateDirLock::TakeBlocking(*dir).status()), "STATE_DIR_IN_USE");
  // The VMM holds the lock until its exec; wait for that, then kill the daemon as hard as can be.
  const std::string comm = absl::StrCat("/proc/", vmm, "/comm");
  for (int i = 0; i < 1000; ++i) {
    FILE* const file = ::fopen(comm.c_str(), "r");
    char name[16] = {};
    if (file != nullptr) {
      (void)!::fgets(name, sizeof name, file);
      ::fclose(file);
    }
    if (absl::string_view(name) == "sleep\n") { break; }
    ::usleep(10'000);
  }
  ASSERT_EQ(::kill(daemon, SIGKILL), 0);
  ASSERT_EQ(::waitpid(daemon, nullptr, 0), daemon);
  const absl::StatusOr<StateDirLock> next = StateDirLock::TakeBlocking(*dir);
  EXPECT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(::kill(vmm, SIGKILL), 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace forkd::engine
