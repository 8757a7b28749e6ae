// On this host's own control groups, whichever version works. Each hog is a child process of the test.
#include "cgroup/cgroup_tree.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/pidfd.h"

namespace forkd::cgroup {
namespace {

using std::chrono::seconds;

constexpr std::int64_t kMiB = 1 << 20;

// A child that waits for one byte on a pipe, then does its work; so it can be put into a leaf first.
class Child {
 public:
  explicit Child(std::function<int()> work) {
    int go[2];
    if (::pipe2(go, O_CLOEXEC) != 0) { abort(); }
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(go[1]);
      char byte;
      if (::read(go[0], &byte, 1) != 1) { ::_exit(99); }
      ::_exit(work());
    }
    ::close(go[0]);
    go_.reset(go[1]);
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      Wait();
    }
  }
  pid_t pid() const { return pid_; }
  void Go() { ASSERT_EQ(::write(go_.get(), "g", 1), 1); }
  int Wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd go_;
};

int EatMemory(std::int64_t bytes) {
  char* memory = static_cast<char*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) { return 1; }
  for (std::int64_t offset = 0; offset < bytes; offset += 4096) { memory[offset] = 1; }
  return 0;
}

int Sleep() {
  while (true) { ::pause(); }
}

class CgroupTreeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) { GTEST_SKIP() << "needs root"; }
    absl::StatusOr<std::unique_ptr<CgroupTree>> tree = OpenCgroupTree({.parent = "forkd-test"});
    ASSERT_TRUE(tree.ok()) << tree.status();
    tree_ = *std::move(tree);
    instance_ = absl::StrCat("t", ::getpid());
  }
  void TearDown() override {
    if (!tree_) { return; }
    const absl::Status swept = SweepLeaves(*tree_, instance_, {}, Deadline::In(seconds(5)));
    EXPECT_TRUE(swept.ok()) << swept;
    // Census: nothing of this instance is left, in any hierarchy.
    EXPECT_TRUE(tree_->ListLeaves(instance_)->empty());
    EXPECT_TRUE(absl::IsNotFound(tree_->Processes(instance_).status()));
    // The test's parent is its own; with it gone the host is as it was.
    ASSERT_TRUE(tree_->Create("probe", {}).ok());
    for (const std::filesystem::directory_entry& mount : std::filesystem::directory_iterator("/sys/fs/cgroup")) {
      for (const std::filesystem::path& parent : {mount.path() / "forkd-test", std::filesystem::path("/sys/fs/cgroup/forkd-test")}) {
        ::rmdir((parent / "probe").c_str());
        ::rmdir(parent.c_str());
        EXPECT_FALSE(std::filesystem::exists(parent)) << parent;
      }
    }
  }
  CgroupLeaf Leaf(const Quota& quota, absl::string_view name = "sb-1-0001") {
    absl::StatusOr<CgroupLeaf> leaf = CgroupLeaf::Create(tree_.get(), absl::StrCat(instance_, "/", name), quota);
    EXPECT_TRUE(leaf.ok()) << leaf.status();
    return leaf.ok() ? *std::move(leaf) : CgroupLeaf();
  }

  std::unique_ptr<CgroupTree> tree_;
  std::string instance_;
};

TEST_F(CgroupTreeTest, MemoryHogIsKilledAloneAndTheLeafSaysSo) {
  CgroupLeaf hogs_leaf = Leaf({.memory_max_bytes = 32 * kMiB}, "sb-hog");
  CgroupLeaf others_leaf = Leaf({.memory_max_bytes = 32 * kMiB}, "sb-other");
  Child hog([] { return EatMemory(128 * kMiB); });
  Child other([] { return EatMemory(8 * kMiB) == 0 ? Sleep() : 1; });
  ASSERT_TRUE(hogs_leaf.AddProcess(hog.pid()).ok());
  ASSERT_TRUE(others_leaf.AddProcess(other.pid()).ok());
  other.Go();
  hog.Go();
  const int status = hog.Wait();
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  const absl::StatusOr<Usage> usage = hogs_leaf.ReadUsage();
  ASSERT_TRUE(usage.ok()) << usage.status();
  EXPECT_EQ(usage->oom_kill_count, 1);
  EXPECT_GE(usage->memory_peak_bytes.value_or(0), 30 * kMiB);
  EXPECT_LE(usage->memory_peak_bytes.value_or(0), 32 * kMiB);
  EXPECT_EQ(::waitpid(other.pid(), nullptr, WNOHANG), 0) << "the neighbour died too";
  EXPECT_EQ(others_leaf.ReadUsage()->oom_kill_count, 0);
}

TEST_F(CgroupTreeTest, ControlTheSameHogLivesWithoutTheLimit) {
  CgroupLeaf leaf = Leaf({});
  Child hog([] { return EatMemory(128 * kMiB); });
  ASSERT_TRUE(leaf.AddProcess(hog.pid()).ok());
  hog.Go();
  EXPECT_EQ(hog.Wait(), 0);
  EXPECT_EQ(leaf.ReadUsage()->oom_kill_count, 0);
  EXPECT_GE(leaf.ReadUsage()->memory_peak_bytes.value_or(0), 128 * kMiB);
}

TEST_F(CgroupTreeTest, ForksBeyondThePidLimitAreRefusedAndCounted) {
  CgroupLeaf leaf = Leaf({.pids_max = 5});
  // Exit status: how many forks worked.
  Child bomb([] {
    int made = 0;
    for (int i = 0; i < 20; ++i) {
      const pid_t pid = ::fork();
      if (pid == 0) { Sleep(); }
      if (pid > 0) { ++made; }
    }
    return made;
  });
  ASSERT_TRUE(leaf.AddProcess(bomb.pid()).ok());
  bomb.Go();
  const int status = bomb.Wait();
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 4);
  const absl::StatusOr<Usage> usage = leaf.ReadUsage();
  ASSERT_TRUE(usage.ok());
  EXPECT_EQ(usage->pid_count, 4);
  EXPECT_GE(usage->pids_refused_count.value_or(0), 1);
  EXPECT_TRUE(leaf.KillAll(Deadline::In(seconds(5))).ok());
  EXPECT_EQ(leaf.ReadUsage()->pid_count, 0);
}

TEST_F(CgroupTreeTest, CpuQuotaHoldsByTheKernelsOwnCounters) {
  CgroupLeaf leaf = Leaf({.cpu_quota_millicores = 200});
  Child burner([]() -> int {
    volatile std::uint64_t n = 0;
    while (true) { n = n + 1; }
  });
  ASSERT_TRUE(leaf.AddProcess(burner.pid()).ok());
  burner.Go();
  const auto begin = std::chrono::steady_clock::now();
  const std::int64_t before = leaf.ReadUsage()->cpu_time_us.value_or(-1);
  ASSERT_GE(before, 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  const absl::StatusOr<Usage> usage = leaf.ReadUsage();
  const auto wall_us = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin).count();
  ASSERT_TRUE(usage.ok());
  // A fifth of a core, plus what one period may be off at either end. Never a lower bound: the machine may be busy.
  EXPECT_LE(*usage->cpu_time_us - before, wall_us / 5 + 2 * 20'000 + 10'000);
  EXPECT_GE(usage->cpu_throttled_count.value_or(0), 1);
  EXPECT_GE(usage->cpu_throttled_us.value_or(0), 1);
}

TEST_F(CgroupTreeTest, ALeafWithALiveProcessIsNotRemovedAndLaterIs) {
  CgroupLeaf leaf = Leaf({.memory_max_bytes = 64 * kMiB});
  Child child(Sleep);
  ASSERT_TRUE(leaf.AddProcess(child.pid()).ok());
  const absl::Status refused = leaf.Remove();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(refused), "SANDBOX_BUSY");
  EXPECT_TRUE(leaf.valid());
  EXPECT_EQ(leaf.ReadUsage()->pid_count, 1) << "the refused removal must leave the leaf whole";
  ASSERT_TRUE(leaf.KillAll(Deadline::In(seconds(5))).ok());
  EXPECT_TRUE(WIFSIGNALED(child.Wait()));
  const std::string path = leaf.path();
  EXPECT_TRUE(leaf.Remove().ok());
  EXPECT_TRUE(leaf.Remove().ok());
  EXPECT_TRUE(tree_->Remove(path).ok());
  EXPECT_TRUE(absl::IsNotFound(tree_->ReadUsage(path).status()));
}

TEST_F(CgroupTreeTest, LimitsCanBeChangedLaterBothWaysButNotBelowUse) {
  CgroupLeaf leaf = Leaf({.memory_max_bytes = 64 * kMiB});
  Child child([] { return EatMemory(40 * kMiB) == 0 ? Sleep() : 1; });
  ASSERT_TRUE(leaf.AddProcess(child.pid()).ok());
  child.Go();
  for (int i = 0; i < 500 && leaf.ReadUsage()->memory_bytes.value_or(0) < 40 * kMiB; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(leaf.Apply({.memory_max_bytes = 128 * kMiB}).ok());
  EXPECT_TRUE(leaf.Apply({.memory_max_bytes = 56 * kMiB}).ok());
  const absl::Status refused = leaf.Apply({.memory_max_bytes = 16 * kMiB});
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_EQ(ReasonOf(refused), "LIMIT_REACHED");
  EXPECT_EQ(::waitpid(child.pid(), nullptr, WNOHANG), 0);
}

TEST_F(CgroupTreeTest, ALimitTheHostCannotApplyFailsTheCreateAndLeavesNothing) {
  // No such disk.
  Quota quota{.io_read_bytes_per_second = 1 << 20};
  quota.io_devices = {{4095, 1}};
  const std::string path = absl::StrCat(instance_, "/sb-io");
  EXPECT_FALSE(CgroupLeaf::Create(tree_.get(), path, quota).ok());
  EXPECT_TRUE(tree_->ListLeaves(instance_)->empty());
  EXPECT_FALSE(CgroupLeaf::Create(tree_.get(), path, {.memory_max_bytes = 1}).ok());
  EXPECT_TRUE(tree_->ListLeaves(instance_)->empty());
}

TEST_F(CgroupTreeTest, AProcessJoinsByDescriptorBeforeItAllocates) {
  CgroupLeaf leaf = Leaf({.memory_max_bytes = 32 * kMiB});
  absl::StatusOr<std::vector<UniqueFd>> fds = leaf.OpenForJoining();
  ASSERT_TRUE(fds.ok()) << fds.status();
  Child child([&fds] {
    for (const UniqueFd& fd : *fds) {
      if (::write(fd.get(), "0", 1) != 1) { return 7; }
    }
    return EatMemory(64 * kMiB);
  });
  child.Go();
  const int status = child.Wait();
  EXPECT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(leaf.ReadUsage()->oom_kill_count, 1);
}

TEST_F(CgroupTreeTest, FrozenProcessesStandStillAndDieAllTheSame) {
  CgroupLeaf leaf = Leaf({});
  Child burner([]() -> int {
    volatile std::uint64_t n = 0;
    while (true) { n = n + 1; }
  });
  ASSERT_TRUE(leaf.AddProcess(burner.pid()).ok());
  burner.Go();
  ASSERT_TRUE(leaf.Freeze().ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const std::int64_t frozen = leaf.ReadUsage()->cpu_time_us.value_or(-1);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(leaf.ReadUsage()->cpu_time_us, frozen);
  EXPECT_TRUE(leaf.KillAll(Deadline::In(seconds(5))).ok());
  EXPECT_TRUE(WIFSIGNALED(burner.Wait()));
}

TEST_F(CgroupTreeTest, SweepKillsAndRemovesAllButWhatIsKept) {
  CgroupLeaf lost = Leaf({}, "sb-lost");
  CgroupLeaf kept = Leaf({}, "sb-kept");
  Child orphan(Sleep);
  Child survivor(Sleep);
  ASSERT_TRUE(lost.AddProcess(orphan.pid()).ok());
  ASSERT_TRUE(kept.AddProcess(survivor.pid()).ok());
  const std::string kept_path = kept.path();
  // As after a crash: nobody owns them.
  lost.Keep();
  kept.Keep();
  ASSERT_TRUE(SweepLeaves(*tree_, instance_, {kept_path}, Deadline::In(seconds(5))).ok());
  EXPECT_TRUE(WIFSIGNALED(orphan.Wait()));
  EXPECT_EQ(::waitpid(survivor.pid(), nullptr, WNOHANG), 0);
  EXPECT_THAT(*tree_->ListLeaves(instance_), testing::ElementsAre(kept_path));
  absl::StatusOr<CgroupLeaf> adopted = CgroupLeaf::Adopt(tree_.get(), kept_path);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ(adopted->ReadUsage()->pid_count, 1);
  EXPECT_TRUE(adopted->KillAll(Deadline::In(seconds(5))).ok());
}

TEST_F(CgroupTreeTest, RefusesPathsThatLeadElsewhere) {
  for (const char* path : {"", "..", "../x", "a/../b", "/a", "a//b", "a/.b", "a b"}) {
    EXPECT_EQ(tree_->Create(path, {}).code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(tree_->Remove(path).code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(tree_->KillAll(path, Deadline::In(seconds(1))).code(), absl::StatusCode::kInvalidArgument) << path;
  }
}

TEST_F(CgroupTreeTest, TwoOwnersOfOnePathAreRefused) {
  CgroupLeaf leaf = Leaf({});
  EXPECT_EQ(CgroupLeaf::Create(tree_.get(), leaf.path(), {}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(leaf.ReadUsage().ok()) << "the refused create took the first one's leaf away";
}

TEST(CgroupProbeTest, SaysWhatIsMissing) {
  const absl::StatusOr<std::unique_ptr<CgroupTree>> tree = OpenCgroupTree({.mount_root = "/nonexistent"});
  EXPECT_EQ(tree.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(tree.status()), "HOST_MISSING");
}

}  // namespace
}  // namespace forkd::cgroup
