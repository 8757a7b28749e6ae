// What survives a kill and a power cut, seen from outside: a real kill -9, and the syncs that SQLite really does.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/error.h"
#include "engine/registry/registry.h"

namespace {
std::atomic<int> syncs{0};
}

// The executable's symbols come before the C library's: SQLite's calls arrive here.
extern "C" int fdatasync(int fd) {
  ++syncs;
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}
extern "C" int fsync(int fd) {
  ++syncs;
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

namespace forkd::engine {
namespace {

SnapshotTag Tag(absl::string_view text) { return *SnapshotTag::Parse(text); }
SandboxId Id(int sequence) { return *SandboxId::Parse(absl::StrFormat("sb-6a60c2f1-%08x", sequence)); }

class DurabilityTest : public ::testing::Test {
 protected:
  DurabilityTest() {
    std::string dir = ::testing::TempDir() + "/durability-XXXXXX";
    EXPECT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
  }
  ~DurabilityTest() override { std::filesystem::remove_all(dir_); }

  static void AddRoot(Registry& registry) {
    const SnapshotRow row(Tag("py"), Tag("py"));
    ASSERT_TRUE(registry.InsertSnapshotBlocking(row).ok());
    ASSERT_TRUE(registry.MarkSnapshotReadyBlocking(row, std::nullopt).ok());
  }

  std::string dir_;
};

TEST_F(DurabilityTest, ReadySnapshotIsSyncedAndSandboxesDoNotWaitForTheDisk) {
  const std::unique_ptr<Registry> registry = *Registry::OpenBlocking(dir_);
  const SnapshotRow row(Tag("py"), Tag("py"));
  ASSERT_TRUE(registry->InsertSnapshotBlocking(row).ok());
  int before = syncs;
  ASSERT_TRUE(registry->MarkSnapshotReadyBlocking(row, std::nullopt).ok());
  EXPECT_GT(syncs, before) << "READY must survive a power cut";
  before = syncs;
  for (int i = 0; i < 20; ++i) { ASSERT_TRUE(registry->InsertSandboxesBlocking({SandboxRow(Id(i), Tag("py"), Tag("py"))}).ok()); }
  EXPECT_EQ(syncs, before) << "a fork must not wait for the disk";
}

TEST_F(DurabilityTest, KillKeepsEveryAnsweredChangeAndNoHalfOfOne) {
  { AddRoot(**Registry::OpenBlocking(dir_)); }
  int answered[2];
  ASSERT_EQ(::pipe(answered), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const absl::StatusOr<std::unique_ptr<Registry>> registry = Registry::OpenBlocking(dir_);
    for (int i = 0; registry.ok(); i += 2) {
      const std::vector<SandboxRow> pair = {SandboxRow(Id(i), Tag("py"), Tag("py")), SandboxRow(Id(i + 1), Tag("py"), Tag("py"))};
      if (!(*registry)->InsertSandboxesBlocking(pair).ok() || ::write(answered[1], &i, sizeof i) != sizeof i) { break; }
    }
    ::_exit(1);
  }
  ::close(answered[1]);
  int last = -1;
  for (int n = 0; n < 200; ++n) { ASSERT_EQ(::read(answered[0], &last, sizeof last), static_cast<ssize_t>(sizeof last)); }
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  while (::read(answered[0], &last, sizeof last) == static_cast<ssize_t>(sizeof last)) {}
  ::close(answered[0]);

  const absl::StatusOr<std::unique_ptr<Registry>> registry = Registry::OpenBlocking(dir_);
  ASSERT_TRUE(registry.ok()) << registry.status();
  const absl::StatusOr<std::vector<SandboxRow>> rows = (*registry)->ListSandboxesBlocking();
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_GE(static_cast<int>(rows->size()), last + 2);
  EXPECT_EQ(rows->size() % 2, 0u);
}

}  // namespace
}  // namespace forkd::engine
