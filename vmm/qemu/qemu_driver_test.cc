// The whole life of microVMs on the real QEMU, with the tiny guest: under TCG, and under KVM where /dev/kvm runs it.
#include "vmm/qemu/qemu_driver.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/async_event.h"
#include "base/error.h"
#include "base/mapping.h"
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
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator()));
}

// Coroutines that see a process off may still have a turn to take when a call has returned.
bool DescriptorsComeDownTo(int wanted) {
  const Deadline deadline = Deadline::In(seconds(5));
  while (OpenDescriptors() != wanted && !deadline.Expired()) { std::this_thread::yield(); }
  return OpenDescriptors() == wanted;
}

// Waits, off the I/O thread, for a VM's exit.
class ExitWatch {
 public:
  absl::AnyInvocable<void(const VmExit&)> Callback() {
    return [promise = promise_](const VmExit& exit) { promise->set_value(exit); };
  }
  VmExit Wait() {
    std::future<VmExit> future = promise_->get_future();
    if (future.wait_for(seconds(20)) != std::future_status::ready) { return {.kind = VmExit::Kind::kKilled, .reason = "<no exit was reported>"}; }
    return future.get();
  }

 private:
  std::shared_ptr<std::promise<VmExit>> promise_ = std::make_shared<std::promise<VmExit>>();
};

bool EndsSoon(const Pidfd& process) {
  pollfd entry{.fd = process.fd(), .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, 20'000) == 1;
}

// Starts an operation and kills the VM while it is under way; the operation's outcome in `other`.
Task<void> StepOf(Vm* vm, int step, absl::Status* other, AsyncEvent* done) {
  switch (step) {
    case 0: *other = (co_await vm->SaveDeviceState(Soon())).status(); break;
    case 1: *other = (co_await vm->CollectDivergedPages(Soon())).status(); break;
    case 2: *other = co_await vm->Resume(Soon()); break;
    default: *other = co_await vm->Pause(Soon()); break;
  }
  done->Set();
}
Task<absl::Status> KillDuring(Vm* vm, int step, absl::Status* other) {
  const Executor executor = co_await boost::asio::this_coro::executor;
  AsyncEvent done(executor);
  SpawnOn(executor, StepOf(vm, step, other, &done));
  const absl::Status killed = co_await vm->Kill(Soon());
  co_await done.Wait(Soon());
  co_return killed;
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
    EXPECT_TRUE(around_.Await(vm.PrepareBranch(Soon())).ok());
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

// A stopped VM takes nothing from the host: else its device state and its pages, saved one after the other, would not fit together.
TEST_P(QemuDriverTest, WhatTheHostDoesDuringABranchReachesNeitherStateNorPages) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> source = Restore(NewRestore(root));
  ASSERT_NE(source, nullptr);
  ASSERT_TRUE(around_.Await(source->Resume(Soon())).ok());
  UniqueFd agent = Agent(*source);
  EXPECT_EQ(Ask(agent.get(), "epoch 3"), "epoch 3");
  ASSERT_TRUE(around_.Await(source->Pause(Soon())).ok());
  const auto send = [&](absl::string_view text) { ASSERT_EQ(::send(agent.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size())); };
  absl::StatusOr<PageSet> before = around_.Await(source->CollectDivergedPages(Soon()));
  for (int i = 0; i < 12; ++i) { send("epoch"); }
  absl::StatusOr<std::string> state = around_.Await(source->SaveDeviceState(Soon()));
  for (int i = 0; i < 12; ++i) { send(" "); }
  for (int i = 0; i < 3; ++i) {
    agent = Agent(*source);
    EXPECT_EQ(*around_.Await(source->QueryStatus(Soon())), VmStatus::kPaused);
  }
  absl::StatusOr<PageSet> pages = around_.Await(source->CollectDivergedPages(Soon()));
  ASSERT_TRUE(state.ok()) << state.status();
  ASSERT_TRUE(pages.ok() && before.ok());
  EXPECT_TRUE(pages->indexes() == before->indexes());
  EXPECT_TRUE(pages->bytes() == before->bytes());
  std::unique_ptr<Vm> child = Restore(NewRestore(root, std::make_shared<const std::string>(*std::move(state)), std::make_shared<const PageSet>(*std::move(pages))));
  ASSERT_NE(child, nullptr);
  ASSERT_TRUE(around_.Await(child->Resume(Soon())).ok());
  UniqueFd child_agent = Agent(*child);
  // More than the ring has: a buffer that was lost would be missed.
  for (int i = 0; i < 40; ++i) { EXPECT_TRUE(absl::EndsWith(Ask(child_agent.get(), "ping"), "epoch 3")) << i; }
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
  EXPECT_TRUE(DescriptorsComeDownTo(before)) << OpenDescriptors() << " are open, " << before << " were";
  EXPECT_TRUE(std::filesystem::is_empty(run_dir));
}

TEST_P(QemuDriverTest, TwoVcpusThroughTheWholeLife) {
  const Root root = MakeRoot({.vcpus = 2, .memory_mib = kMemoryMib});
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> source = Restore(NewRestore(root));
  ASSERT_NE(source, nullptr);
  ASSERT_TRUE(around_.Await(source->Resume(Soon())).ok());
  UniqueFd agent = Agent(*source);
  EXPECT_EQ(Ask(agent.get(), "ufill 5000 20 3"), "filled 20");
  const BranchPoint branch = Branch(*source);
  ASSERT_NE(branch.pages, nullptr);
  std::unique_ptr<Vm> child = Restore(NewRestore(root, branch.state, branch.pages));
  ASSERT_NE(child, nullptr);
  ASSERT_TRUE(around_.Await(child->Resume(Soon())).ok());
  UniqueFd child_agent = Agent(*child);
  EXPECT_EQ(Ask(child_agent.get(), "ucheck 5000 20 3"), "bad 0");
  EXPECT_EQ(Ask(agent.get(), "ucheck 5000 20 3"), "bad 0");
  Kill(std::move(child));
  Kill(std::move(source));
}

TEST_P(QemuDriverTest, PauseAndResumeMayBeRepeated) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(around_.Await(parent.vm->Pause(Soon())).ok());
    EXPECT_TRUE(around_.Await(parent.vm->Pause(Soon())).ok());
    EXPECT_EQ(*around_.Await(parent.vm->QueryStatus(Soon())), VmStatus::kPaused);
    EXPECT_TRUE(around_.Await(parent.vm->Resume(Soon())).ok());
    EXPECT_TRUE(around_.Await(parent.vm->Resume(Soon())).ok());
    EXPECT_EQ(*around_.Await(parent.vm->QueryStatus(Soon())), VmStatus::kRunning);
    EXPECT_TRUE(absl::StartsWith(Ask(parent.agent.get(), "ping"), "pong"));
  }
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, StateAndPagesAreForPausedChildrenOnly) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  EXPECT_EQ(ReasonOf(around_.Await(parent.vm->SaveDeviceState(Soon())).status()), "SANDBOX_NOT_PAUSED");
  EXPECT_EQ(ReasonOf(around_.Await(parent.vm->CollectDivergedPages(Soon())).status()), "SANDBOX_NOT_PAUSED");
  ASSERT_TRUE(around_.Await(parent.vm->Pause(Soon())).ok());
  const absl::Status no_copy = around_.Await(parent.vm->CollectDivergedPages(Soon())).status();
  EXPECT_EQ(no_copy.code(), absl::StatusCode::kFailedPrecondition) << "a parent's memory is the root itself: " << no_copy;
  EXPECT_TRUE(around_.Await(parent.vm->SaveDeviceState(Soon())).ok());
  EXPECT_TRUE(around_.Await(parent.vm->SaveDeviceState(Soon())).ok()) << "and again";
  EXPECT_TRUE(around_.Await(parent.vm->Resume(Soon())).ok());
  EXPECT_TRUE(absl::StartsWith(Ask(parent.agent.get(), "ping"), "pong"));
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, ManySavesLeaveNoDescriptorInQemu) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> child = Restore(NewRestore(root));
  ASSERT_NE(child, nullptr);
  const auto descriptors = [&] {
    return std::distance(std::filesystem::directory_iterator(absl::StrCat("/proc/", child->process().pid, "/fd")), std::filesystem::directory_iterator());
  };
  Branch(*child);
  ASSERT_TRUE(around_.Await(child->Pause(Soon())).ok());
  const auto before = descriptors();
  std::size_t size = 0;
  for (int i = 0; i < 20; ++i) {
    if (i % 2 == 0) { ASSERT_TRUE(around_.Await(child->PrepareBranch(Soon())).ok()); }
    const auto state = around_.Await(child->SaveDeviceState(Soon()));
    ASSERT_TRUE(state.ok()) << state.status();
    // Equal but for the real-time clock, which goes on.
    EXPECT_TRUE(size == 0 || size == state->size()) << "a save begins where the last one ended";
    EXPECT_TRUE(absl::StartsWith(*state, "QEVM"));
    size = state->size();
  }
  EXPECT_EQ(descriptors(), before);
  Kill(std::move(child));
}

TEST_P(QemuDriverTest, TheConsoleIsReadOnceAndBounded) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  EXPECT_TRUE(absl::StartsWith(Ask(parent.agent.get(), "ping"), "pong")) << "it has booted";
  const auto console = around_.Await(parent.vm->ReadConsole(65536, Soon()));
  ASSERT_TRUE(console.ok()) << console.status();
  EXPECT_TRUE(absl::StrContains(*console, "tinyguest ready")) << *console;
  EXPECT_EQ(*around_.Await(parent.vm->ReadConsole(65536, Soon())), "");
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, TheProcessIsConfined) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> child = Restore(NewRestore(root));
  ASSERT_NE(child, nullptr);
  const std::string proc = absl::StrCat("/proc/", child->process().pid);
  const auto read = [&](const std::string& name) {
    std::ifstream file(absl::StrCat(proc, "/", name));
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  };
  EXPECT_TRUE(absl::StrContains(read("status"), "Seccomp:\t2"));
  const std::string limits = read("limits");
  EXPECT_TRUE(absl::StrContains(limits, "Max core file size        0                    0")) << limits;
  bool found = false;
  std::ifstream smaps(proc + "/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    if (absl::StrContains(line, "/memfd:forkd-test")) {
      inside = true;
      EXPECT_TRUE(absl::StrContains(line, "rw-p")) << "a private copy: " << line;
    }
    if (inside && absl::StartsWith(line, "VmFlags:")) {
      found = true;
      inside = false;
      EXPECT_TRUE(absl::StrContains(line, " dd")) << "guest memory in core files: " << line;
      EXPECT_FALSE(absl::StrContains(line, " mg")) << "page merging: " << line;
    }
  }
  EXPECT_TRUE(found);
  Kill(std::move(child));
}

TEST_P(QemuDriverTest, AKilledVmmIsNoticedAndEveryCallSaysSo) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  ExitWatch watch;
  around_.OnIoThread([&] { parent.vm->OnExit(watch.Callback()); });
  ASSERT_EQ(::kill(parent.vm->process().pid, SIGKILL), 0);
  const VmExit exit = watch.Wait();
  EXPECT_EQ(exit.kind, VmExit::Kind::kProcessEnded);
  EXPECT_TRUE(absl::StrContains(exit.reason, "signal 9")) << exit.reason;
  EXPECT_EQ(around_.Await(parent.vm->Pause(Soon())).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(around_.Await(parent.vm->Resume(Soon())).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(around_.Await(parent.vm->QueryStatus(Soon())).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(around_.Await(parent.vm->SaveDeviceState(Soon())).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(around_.Await(parent.vm->ConnectAgent(Soon())).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(around_.Await(parent.vm->ReadConsole(100, Soon())).status().code(), absl::StatusCode::kUnavailable);
  ExitWatch late;
  around_.OnIoThread([&] { parent.vm->OnExit(late.Callback()); });
  EXPECT_EQ(late.Wait().kind, VmExit::Kind::kProcessEnded) << "who asks late is told at once";
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, AGuestThatResetsEndsItsVm) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  ExitWatch watch;
  around_.OnIoThread([&] { parent.vm->OnExit(watch.Callback()); });
  // The microvm has no keyboard controller: the triple fault of a guest without an IDT is its reset.
  EXPECT_EQ(::write(parent.agent.get(), "triple\n", 7), 7);
  const VmExit exit = watch.Wait();
  EXPECT_EQ(exit.kind, VmExit::Kind::kShutdown) << exit.reason;
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, AnInternalErrorOfTheVmmIsReported) {
  if (GetParam() != Accelerator::kKvm || ::access("/sys/module/kvm_pvm", F_OK) != 0) { GTEST_SKIP() << "only a KVM that emulates ring 0 stops at an instruction"; }
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  ExitWatch watch;
  around_.OnIoThread([&] { parent.vm->OnExit(watch.Callback()); });
  EXPECT_EQ(::write(parent.agent.get(), "cx16\n", 5), 5);
  const VmExit exit = watch.Wait();
  EXPECT_EQ(exit.kind, VmExit::Kind::kInternalError);
  EXPECT_TRUE(absl::StrContains(exit.reason, "internal-error")) << exit.reason;
  EXPECT_TRUE(Pidfd::Open(parent.vm->process()).ok()) << "the process stays until Kill";
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, ADeadlineEndsTheWaitAndNotTheVm) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> child = Restore(NewRestore(root));
  ASSERT_NE(child, nullptr);
  ASSERT_TRUE(around_.Await(child->Resume(Soon())).ok());
  UniqueFd agent = Agent(*child);
  EXPECT_EQ(Ask(agent.get(), "epoch 9"), "epoch 9");
  ASSERT_EQ(::kill(child->process().pid, SIGSTOP), 0);
  const auto hurried = [] { return Deadline::In(std::chrono::milliseconds(50)); };
  EXPECT_EQ(ReasonOf(around_.Await(child->Pause(hurried()))), "DEADLINE");
  EXPECT_EQ(ReasonOf(around_.Await(child->QueryStatus(hurried())).status()), "DEADLINE");
  ASSERT_EQ(::kill(child->process().pid, SIGCONT), 0);
  ASSERT_TRUE(around_.Await(child->Pause(Soon())).ok());
  ASSERT_EQ(::kill(child->process().pid, SIGSTOP), 0);
  EXPECT_EQ(ReasonOf(around_.Await(child->SaveDeviceState(hurried())).status()), "DEADLINE");
  ASSERT_EQ(::kill(child->process().pid, SIGCONT), 0);
  const BranchPoint branch = Branch(*child);
  ASSERT_NE(branch.pages, nullptr) << "a save after one that was given up is whole";
  EXPECT_TRUE(absl::EndsWith(Ask(agent.get(), "ping"), "epoch 9"));
  std::unique_ptr<Vm> grandchild = Restore(NewRestore(root, branch.state, branch.pages));
  ASSERT_NE(grandchild, nullptr);
  ASSERT_TRUE(around_.Await(grandchild->Resume(Soon())).ok());
  EXPECT_TRUE(absl::EndsWith(Ask(Agent(*grandchild).get(), "ping"), "epoch 9"));
  Kill(std::move(grandchild));
  Kill(std::move(child));
}

TEST_P(QemuDriverTest, AVmmThatHangsCanBeKilled) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  ASSERT_EQ(::kill(parent.vm->process().pid, SIGSTOP), 0);
  EXPECT_EQ(ReasonOf(around_.Await(parent.vm->Pause(Deadline::In(std::chrono::milliseconds(50))))), "DEADLINE");
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, KillMayComeInTheMiddleOfAnything) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  for (int step = 0; step < 4; ++step) {
    SCOPED_TRACE(step);
    std::unique_ptr<Vm> child = Restore(NewRestore(root));
    ASSERT_NE(child, nullptr);
    if (step == 3) { ASSERT_TRUE(around_.Await(child->Resume(Soon())).ok()); }
    absl::Status other;
    const absl::Status killed = around_.Await(KillDuring(child.get(), step, &other));
    EXPECT_TRUE(killed.ok()) << killed;
    EXPECT_TRUE(other.ok() || other.code() == absl::StatusCode::kUnavailable || other.code() == absl::StatusCode::kNotFound ||
                other.code() == absl::StatusCode::kFailedPrecondition)
        << other;
    EXPECT_TRUE(around_.Await(child->Kill(Soon())).ok()) << "again is no error";
    Kill(std::move(child));
  }
}

TEST_P(QemuDriverTest, ADestroyedVmTakesItsProcessAlong) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  const absl::StatusOr<Pidfd> pidfd = Pidfd::Open(parent.vm->process());
  ASSERT_TRUE(pidfd.ok());
  around_.OnIoThread([&] { parent.vm.reset(); });
  EXPECT_TRUE(EndsSoon(*pidfd));
}

TEST_P(QemuDriverTest, TheNextDaemonAdoptsWhatThisOneReleases) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  RestoreSpec spec = NewRestore(root);
  const std::string run_dir = spec.run_dir;
  std::unique_ptr<Vm> vm = Restore(std::move(spec));
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(around_.Await(vm->Resume(Soon())).ok());
  UniqueFd agent = Agent(*vm);
  EXPECT_EQ(Ask(agent.get(), "epoch 5"), "epoch 5");
  EXPECT_EQ(Ask(agent.get(), "ufill 5000 20 5"), "filled 20");
  const ProcessId process = vm->process();
  around_.OnIoThread([&] {
    vm->Release();
    vm.reset();
  });
  agent.reset();

  absl::StatusOr<std::unique_ptr<Vm>> adopted = around_.Await(driver_->Adopt({.id = "again", .process = process, .run_dir = run_dir}, Soon()));
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ((*adopted)->process(), process);
  EXPECT_EQ((*adopted)->root()->inode(), root.image->inode());
  EXPECT_TRUE((*adopted)->root()->IsSealed());
  EXPECT_EQ(*around_.Await((*adopted)->QueryStatus(Soon())), VmStatus::kRunning);
  UniqueFd again = Agent(**adopted);
  EXPECT_TRUE(absl::EndsWith(Ask(again.get(), "ping"), "epoch 5"));
  const BranchPoint branch = Branch(**adopted);
  ASSERT_NE(branch.pages, nullptr);
  EXPECT_GE(branch.pages->page_count(), 20);
  // What was released is not this process's child in a real restart; here it still is, and its end is noticed all the same.
  ExitWatch watch;
  around_.OnIoThread([&] { (*adopted)->OnExit(watch.Callback()); });
  ASSERT_EQ(::kill(process.pid, SIGKILL), 0);
  EXPECT_EQ(watch.Wait().kind, VmExit::Kind::kProcessEnded);
  Kill(*std::move(adopted));
  EXPECT_EQ(around_.Await(driver_->Adopt({.id = "again", .process = process, .run_dir = run_dir}, Soon())).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(QemuDriverTest, APausedVmIsAdoptedPaused) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  RestoreSpec spec = NewRestore(root);
  const std::string run_dir = spec.run_dir;
  std::unique_ptr<Vm> vm = Restore(std::move(spec));
  ASSERT_NE(vm, nullptr);
  const std::string saved_before = *around_.Await(vm->SaveDeviceState(Soon()));
  const ProcessId process = vm->process();
  around_.OnIoThread([&] {
    vm->Release();
    vm.reset();
  });
  absl::StatusOr<std::unique_ptr<Vm>> adopted = around_.Await(driver_->Adopt({.id = "again", .process = process, .run_dir = run_dir}, Soon()));
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  const auto state = around_.Await((*adopted)->SaveDeviceState(Soon()));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->size(), saved_before.size()) << "the whole of it, not what an earlier daemon's descriptor left";
  EXPECT_TRUE(around_.Await((*adopted)->CollectDivergedPages(Soon())).ok());
  Kill(*std::move(adopted));
}

TEST_P(QemuDriverTest, StraysAreFoundByTheirRunFolder) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  std::unique_ptr<Vm> lost = Restore(NewRestore(root));
  std::unique_ptr<Vm> kept = Restore(NewRestore(root));
  ASSERT_TRUE(lost != nullptr && kept != nullptr);
  const Pidfd lost_process = *Pidfd::Open(lost->process());
  around_.OnIoThread([&] {
    lost->Release();
    lost.reset();
  });
  EXPECT_EQ(driver_->KillStraysBlocking(around_.scratch + "/", {kept->process().pid}), 1);
  EXPECT_TRUE(lost_process.HasExited());
  EXPECT_TRUE(around_.Await(kept->Resume(Soon())).ok());
  Kill(std::move(kept));
}

TEST_P(QemuDriverTest, DeviceStatesThatAreNoneAreRefusedAndLeaveNothing) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  const std::string& good = *root.state;
  std::string flipped = good;
  flipped[6] = static_cast<char>(flipped[6] ^ 0x40);
  const std::pair<const char*, std::string> cases[] = {
      {"garbage", std::string(4000, 'x')}, {"one byte", "Q"}, {"half", good.substr(0, good.size() / 2)}, {"a flipped byte", flipped}};
  const int before = OpenDescriptors();
  for (const auto& [name, state] : cases) {
    RestoreSpec spec = NewRestore(root, std::make_shared<const std::string>(state));
    const std::string run_dir = spec.run_dir;
    const auto refused = around_.Await(driver_->Restore(std::move(spec), Soon()));
    EXPECT_FALSE(refused.ok()) << name;
    EXPECT_EQ(ReasonOf(refused.status()), "VMM_FAILED") << name << ": " << refused.status();
    EXPECT_TRUE(std::filesystem::is_empty(run_dir)) << name;
  }
  EXPECT_TRUE(DescriptorsComeDownTo(before)) << OpenDescriptors() << " are open, " << before << " were";
  EXPECT_EQ(driver_->KillStraysBlocking(around_.scratch + "/", {}), 0) << "no process is left";
}

TEST_P(QemuDriverTest, ADeadlineThatHasPassedLeavesNothing) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  const int before = OpenDescriptors();
  for (const int ms : {0, 5, 15}) {
    RestoreSpec spec = NewRestore(root);
    const std::string run_dir = spec.run_dir;
    const auto late = around_.Await(driver_->Restore(std::move(spec), Deadline::In(std::chrono::milliseconds(ms))));
    EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded) << ms << ": " << late.status();
    EXPECT_TRUE(std::filesystem::is_empty(run_dir));
  }
  EXPECT_TRUE(DescriptorsComeDownTo(before)) << OpenDescriptors() << " are open, " << before << " were";
  EXPECT_EQ(driver_->KillStraysBlocking(around_.scratch + "/", {}), 0);
}

TEST_P(QemuDriverTest, SpecsThatCannotBeAreRefusedBeforeAnyProcess) {
  const Root root = MakeRoot();
  ASSERT_NE(root.image, nullptr);
  const auto restore = [&](const std::function<void(RestoreSpec&)>& change) {
    RestoreSpec spec = NewRestore(root);
    change(spec);
    return around_.Await(driver_->Restore(std::move(spec), Soon())).status();
  };
  EXPECT_EQ(restore([](RestoreSpec& s) { s.id = ""; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(restore([](RestoreSpec& s) { s.id = "a,b=c"; }).code(), absl::StatusCode::kInvalidArgument) << "QEMU would read options";
  EXPECT_EQ(restore([](RestoreSpec& s) { s.id = std::string(65, 'a'); }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(restore([](RestoreSpec& s) { s.shape.vcpus = 0; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(restore([](RestoreSpec& s) { s.shape.memory_mib = 128; }).code(), absl::StatusCode::kInvalidArgument) << "not the root's size";
  EXPECT_EQ(restore([](RestoreSpec& s) { s.root = nullptr; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(restore([](RestoreSpec& s) { s.device_state = nullptr; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(restore([](RestoreSpec& s) { s.root = std::make_shared<RootImage>(*RootImage::CreateBlocking("open", kMemoryMib << 20)); }).code(),
            absl::StatusCode::kInvalidArgument)
      << "not sealed";
  EXPECT_EQ(restore([](RestoreSpec& s) { s.run_dir = "/no/such/folder"; }).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(restore([](RestoreSpec& s) {
              Mapping bytes = *Mapping::Anonymous(kPageBytes, Mapping::Prefault::kNo);
              s.pages = std::make_shared<const PageSet>(*PageSet::Create({kMemoryMib << 8}, std::move(bytes)));
            }).code(),
            absl::StatusCode::kInvalidArgument)
      << "a page beyond the memory";
  BootSpec no_kernel = NewBoot(kShape, std::make_shared<RootImage>(*RootImage::CreateBlocking("test", kMemoryMib << 20)));
  no_kernel.kernel.reset();
  EXPECT_EQ(around_.Await(driver_->Boot(std::move(no_kernel), Soon())).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(driver_->KillStraysBlocking(around_.scratch + "/", {}), 0);
}

TEST_P(QemuDriverTest, AKernelThatIsNoneIsRefusedInQemusWords) {
  BootSpec spec = NewBoot(kShape, std::make_shared<RootImage>(*RootImage::CreateBlocking("test", kMemoryMib << 20)));
  spec.kernel.reset(::open("/etc/hostname", O_RDONLY | O_CLOEXEC));
  const auto refused = around_.Await(driver_->Boot(std::move(spec), Soon()));
  EXPECT_EQ(ReasonOf(refused.status()), "VMM_FAILED");
  EXPECT_TRUE(absl::StrContains(refused.status().message(), "it said: ")) << refused.status();
}

TEST_P(QemuDriverTest, RunFoldersMayHaveLongPaths) {
  Parent parent;
  parent.ram = std::make_shared<RootImage>(*RootImage::CreateBlocking("test", kMemoryMib << 20));
  BootSpec spec = NewBoot(kShape, parent.ram);
  spec.run_dir = absl::StrCat(around_.scratch, "/", std::string(200, 'd'));
  ASSERT_EQ(::mkdir(spec.run_dir.c_str(), 0700), 0);
  auto vm = around_.Await(driver_->Boot(std::move(spec), Soon()));
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_TRUE(absl::StartsWith(Ask(Agent(**vm).get(), "ping"), "pong"));
  Kill(*std::move(vm));
}

TEST_P(QemuDriverTest, TheAgentsPortTakesOneConnectionAfterTheOther) {
  Parent parent = BootParent();
  ASSERT_NE(parent.vm, nullptr);
  for (int i = 0; i < 5; ++i) {
    parent.agent.reset();
    parent.agent = Agent(*parent.vm);
    EXPECT_TRUE(absl::StartsWith(Ask(parent.agent.get(), "ping"), "pong")) << i;
  }
  Kill(std::move(parent.vm));
}

TEST_P(QemuDriverTest, RecordsAreEqualForEqualMachinesAndNameWhatDiffers) {
  const MachineRecord record = driver_->RecordFor(kShape, true);
  EXPECT_EQ(record, driver_->RecordFor(kShape, true));
  EXPECT_EQ(record.accelerator, AcceleratorName(GetParam()));
  EXPECT_FALSE(record.vmm_version.empty());
  EXPECT_FALSE(record.host_cpu.empty());
  const std::string difference = MachineDifference(record, driver_->RecordFor({.vcpus = 2, .memory_mib = kMemoryMib}, false));
  EXPECT_TRUE(absl::StrContains(difference, "vcpus=2")) << difference;
  EXPECT_TRUE(absl::StrContains(difference, "virtio-blk")) << difference;
  EXPECT_EQ(driver_->capabilities().accelerator, GetParam());
  EXPECT_TRUE(driver_->capabilities().branch);
}

TEST(QemuDriver, AMissingBinaryIsSaidToBeMissing) {
  VmmSurroundings around;
  const auto missing = CreateQemuDriverBlocking({.binary = "/no/such/qemu"}, around.runtime.executor(), &around.pool, &around.launcher);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(missing.status()), "HOST_MISSING");
}

}  // namespace
}  // namespace forkd::vmm
