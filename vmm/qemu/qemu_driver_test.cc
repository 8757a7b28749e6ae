// The whole life of microVMs on the real QEMU, with the tiny guest: under TCG, and under KVM where /dev/kvm runs it.
#include "vmm/qemu/qemu_driver.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "vmm/testing/tiny_guest.h"

namespace forkd::vmm {
namespace {

using std::chrono::seconds;

constexpr int64_t kMemoryMib = 64;
constexpr MachineShape kShape{.vcpus = 1, .memory_mib = kMemoryMib};

Deadline Soon() { return Deadline::In(seconds(30)); }

double MsSince(Deadline::Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Deadline::Clock::now() - begin).count();
}

int OpenDescriptors() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    static_cast<void>(entry);
    ++count;
  }
  return count;
}

class QemuDriverTest : public testing::TestWithParam<Accelerator> {
 protected:
  void SetUp() override {
    if (GetParam() == Accelerator::kKvm && ::access("/dev/kvm", R_OK | W_OK) != 0) { GTEST_SKIP() << "no /dev/kvm"; }
    absl::StatusOr<std::unique_ptr<VmDriver>> created =
        CreateQemuDriverBlocking({.accelerator = GetParam()}, around_.runtime.executor(), &around_.pool, &around_.launcher);
    ASSERT_TRUE(created.ok()) << created.status();
    driver_ = *std::move(created);
  }

  struct Parent {
    std::unique_ptr<Vm> vm;
    std::shared_ptr<RootImage> ram;
    UniqueFd agent;
  };
  struct Root {
    std::shared_ptr<const RootImage> image;
    std::shared_ptr<const std::string> state;
    MachineShape shape;
  };

  BootSpec NewBoot(MachineShape shape, std::shared_ptr<RootImage> ram) {
    return {.id = absl::StrCat("parent-", next_id_++),
            .shape = shape,
            .kernel = OpenTinyGuest(),
            .kernel_args = kTinyGuestArgs,
            .ram = std::move(ram),
            .run_dir = around_.NewRunDir()};
  }

  Parent BootParent(MachineShape shape = kShape) {
    Parent parent;
    parent.ram = std::make_shared<RootImage>(*RootImage::CreateBlocking("test", shape.memory_mib << 20));
    absl::StatusOr<std::unique_ptr<Vm>> vm = around_.Await(driver_->Boot(NewBoot(shape, parent.ram), Soon()));
    EXPECT_TRUE(vm.ok()) << vm.status();
    if (!vm.ok()) { return parent; }
    parent.vm = *std::move(vm);
    parent.agent = Agent(*parent.vm);
    return parent;
  }

  UniqueFd Agent(Vm& vm) {
    absl::StatusOr<UniqueFd> agent = around_.Await(vm.ConnectAgent(Soon()));
    EXPECT_TRUE(agent.ok()) << agent.status();
    return agent.ok() ? *std::move(agent) : UniqueFd();
  }

  // A root of a guest that has filled 50 pages from page 4096 on with seed 7 and is in epoch 1.
  Root MakeRoot(MachineShape shape = kShape) {
    Parent parent = BootParent(shape);
    if (parent.vm == nullptr) { return {}; }
    EXPECT_EQ(Ask(parent.agent.get(), "ufill 4096 50 7"), "filled 50");
    EXPECT_EQ(Ask(parent.agent.get(), "epoch 1"), "epoch 1");
    EXPECT_TRUE(around_.Await(parent.vm->Pause(Soon())).ok());
    absl::StatusOr<std::string> state = around_.Await(parent.vm->SaveDeviceState(Soon()));
    EXPECT_TRUE(state.ok()) << state.status();
    Kill(std::move(parent.vm));
    EXPECT_TRUE(parent.ram->SealBlocking().ok());
    return {.image = parent.ram, .state = std::make_shared<const std::string>(state.ok() ? *state : ""), .shape = shape};
  }

  RestoreSpec NewRestore(const Root& root, std::shared_ptr<const std::string> state = nullptr, std::shared_ptr<const PageSet> pages = nullptr) {
    return {.id = absl::StrCat("child-", next_id_++),
            .shape = root.shape,
            .root = root.image,
            .device_state = state == nullptr ? root.state : std::move(state),
            .pages = std::move(pages),
            .run_dir = around_.NewRunDir()};
  }

  std::unique_ptr<Vm> Restore(RestoreSpec spec) {
    absl::StatusOr<std::unique_ptr<Vm>> vm = around_.Await(driver_->Restore(std::move(spec), Soon()));
    EXPECT_TRUE(vm.ok()) << vm.status();
    return vm.ok() ? *std::move(vm) : nullptr;
  }

  struct BranchPoint {
    std::shared_ptr<const std::string> state;
    std::shared_ptr<const PageSet> pages;
  };
  // Pauses, saves, copies, resumes.
  BranchPoint Branch(Vm& vm) {
    const auto begin = Deadline::Clock::now();
    EXPECT_TRUE(around_.Await(vm.Pause(Soon())).ok());
    absl::StatusOr<std::string> state = around_.Await(vm.SaveDeviceState(Soon()));
    EXPECT_TRUE(state.ok()) << state.status();
    absl::StatusOr<PageSet> pages = around_.Await(vm.CollectDivergedPages(Soon()));
    EXPECT_TRUE(pages.ok()) << pages.status();
    EXPECT_TRUE(around_.Await(vm.Resume(Soon())).ok());
    const double pause_ms = MsSince(begin);
    if (!state.ok() || !pages.ok()) { return {}; }
    std::printf("[ measured ] %s: branch pause %.2f ms, %ld pages, state %zu bytes\n", std::string(AcceleratorName(GetParam())).c_str(), pause_ms,
                static_cast<long>(pages->page_count()), state->size());
    return {std::make_shared<const std::string>(*std::move(state)), std::make_shared<const PageSet>(*std::move(pages))};
  }

  void Kill(std::unique_ptr<Vm> vm) {
    const ProcessId process = vm->process();
    EXPECT_TRUE(around_.Await(vm->Kill(Soon())).ok());
    EXPECT_FALSE(Pidfd::Open(process).ok()) << "the process is still there";
    around_.OnIoThread([&vm] { vm.reset(); });
  }

  VmmSurroundings around_;
  std::unique_ptr<VmDriver> driver_;
  int next_id_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Accelerators, QemuDriverTest, testing::Values(Accelerator::kTcg, Accelerator::kKvm),
                         [](const testing::TestParamInfo<Accelerator>& info) { return std::string(AcceleratorName(info.param)); });

TEST_P(QemuDriverTest, ChildrenOfARootHaveItsMemoryAndGoTheirOwnWays) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  const auto begin = Deadline::Clock::now();
  std::unique_ptr<Vm> first = Restore(NewRestore(root));
  std::printf("[ measured ] %s: spawn to loaded %.1f ms\n", std::string(AcceleratorName(GetParam())).c_str(), MsSince(begin));
  std::unique_ptr<Vm> second = Restore(NewRestore(root));
  ASSERT_TRUE(first != nullptr && second != nullptr);
  EXPECT_EQ(*around_.Await(first->QueryStatus(Soon())), VmStatus::kPaused);
  EXPECT_TRUE(around_.Await(first->Resume(Soon())).ok());
  EXPECT_TRUE(around_.Await(second->Resume(Soon())).ok());
  EXPECT_EQ(*around_.Await(first->QueryStatus(Soon())), VmStatus::kRunning);
  const UniqueFd a = Agent(*first);
  const UniqueFd b = Agent(*second);
  EXPECT_EQ(Ask(a.get(), "ucheck 4096 50 7"), "bad 0");
  EXPECT_EQ(Ask(b.get(), "check 4096 50 7"), "bad 0");
  EXPECT_EQ(Ask(a.get(), "epoch 2"), "epoch 2");
  EXPECT_EQ(Ask(a.get(), "ufill 4096 50 8"), "filled 50");
  EXPECT_EQ(Ask(b.get(), "ucheck 4096 50 7"), "bad 0") << "the sibling's memory is its own";
  EXPECT_TRUE(absl::EndsWith(Ask(b.get(), "ping"), "epoch 1"));
  EXPECT_TRUE(absl::EndsWith(Ask(a.get(), "ping"), "epoch 2"));
  Kill(std::move(first));
  Kill(std::move(second));
}

TEST_P(QemuDriverTest, ABranchOfABranchCarriesItsPagesWhileTheSourceGoesOn) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> source = Restore(NewRestore(root));
  ASSERT_NE(source, nullptr);
  ASSERT_TRUE(around_.Await(source->Resume(Soon())).ok());
  UniqueFd agent = Agent(*source);
  EXPECT_EQ(Ask(agent.get(), "ufill 5000 200 3"), "filled 200");
  EXPECT_EQ(Ask(agent.get(), "epoch 2"), "epoch 2");
  const BranchPoint branch = Branch(*source);
  ASSERT_NE(branch.pages, nullptr);
  EXPECT_GE(branch.pages->page_count(), 200);
  EXPECT_LE(branch.pages->page_count(), 260) << "only what the guest wrote";
  EXPECT_EQ(Ask(agent.get(), "ufill 5000 200 4"), "filled 200") << "the source goes on";

  std::unique_ptr<Vm> child = Restore(NewRestore(root, branch.state, branch.pages));
  ASSERT_NE(child, nullptr);
  ASSERT_TRUE(around_.Await(child->Resume(Soon())).ok());
  UniqueFd child_agent = Agent(*child);
  EXPECT_EQ(Ask(child_agent.get(), "ucheck 5000 200 3"), "bad 0");
  EXPECT_EQ(Ask(child_agent.get(), "ucheck 4096 50 7"), "bad 0");
  EXPECT_TRUE(absl::EndsWith(Ask(child_agent.get(), "ping"), "epoch 2"));
  EXPECT_EQ(Ask(child_agent.get(), "ufill 6000 30 9"), "filled 30");
  const BranchPoint second = Branch(*child);
  ASSERT_NE(second.pages, nullptr);
  EXPECT_GE(second.pages->page_count(), branch.pages->page_count() + 30) << "injected pages are in the set, too";

  std::unique_ptr<Vm> grandchild = Restore(NewRestore(root, second.state, second.pages));
  ASSERT_NE(grandchild, nullptr);
  ASSERT_TRUE(around_.Await(grandchild->Resume(Soon())).ok());
  UniqueFd last = Agent(*grandchild);
  EXPECT_EQ(Ask(last.get(), "ucheck 4096 50 7"), "bad 0");
  EXPECT_EQ(Ask(last.get(), "ucheck 5000 200 3"), "bad 0");
  EXPECT_EQ(Ask(last.get(), "ucheck 6000 30 9"), "bad 0");
  EXPECT_EQ(Ask(agent.get(), "ucheck 5000 200 4"), "bad 0") << "the source has kept its own";
  Kill(std::move(grandchild));
  Kill(std::move(child));
  Kill(std::move(source));
}

TEST_P(QemuDriverTest, ALifeLeavesNoDescriptorAndNoSocketBehind) {
  { MakeRoot(); }  // what is opened once stays open
  const int before = OpenDescriptors();
  std::string run_dir;
  {
    const Root root = MakeRoot();
    RestoreSpec spec = NewRestore(root);
    run_dir = spec.run_dir;
    std::unique_ptr<Vm> child = Restore(std::move(spec));
    ASSERT_NE(child, nullptr);
    EXPECT_TRUE(std::filesystem::exists(run_dir + "/agent.sock"));
    Branch(*child);
    Kill(std::move(child));
  }
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_TRUE(std::filesystem::is_empty(run_dir));
}

}  // namespace
}  // namespace forkd::vmm
