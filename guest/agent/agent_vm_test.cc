// The agent as PID 1 of a real microVM.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/runtime.h"
#include "guest/agent/testing/micro_vm.h"
#include "guest/client/agent_client.h"

namespace forkd::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Software emulation on a busy machine.
Deadline Soon() { return Deadline::In(seconds(60)); }

template <typename T>
Task<void> Store(Task<T> task, std::optional<T>* result) {
  result->emplace(co_await std::move(task));
}

Task<void> Reset(std::shared_ptr<AgentClient>* client) {
  client->reset();
  co_return;
}

class AgentVmTest : public testing::Test {
 protected:
  void SetUp() override {
    if (MicroVm::ImageDir().empty()) { GTEST_SKIP() << "FORKD_IMAGE_DIR is not set: scripts/test builds the images and sets it"; }
    runtime_.Start();
  }
  ~AgentVmTest() override {
    if (client_ != nullptr) { runtime_.RunBlocking(Reset(&client_)); }
  }
  template <typename T>
  T Run(Task<T> task) {
    std::optional<T> result;
    runtime_.RunBlocking(Store(std::move(task), &result));
    return *std::move(result);
  }
  void Boot(const MicroVm::Options& options) {
    vm_ = std::make_unique<MicroVm>(options);
    Connect();
  }
  void Connect() {
    if (client_ != nullptr) { runtime_.RunBlocking(Reset(&client_)); }
    absl::StatusOr<std::shared_ptr<AgentClient>> client = Run(AgentClient::Connect(vm_->Attach(), vm_->token(), Soon()));
    ASSERT_TRUE(client.ok()) << client.status() << "\n" << vm_->Console();
    client_ = *std::move(client);
  }
  static agentpb::ExecStart Program(const std::vector<std::string>& argv) {
    agentpb::ExecStart start;
    for (const std::string& argument : argv) { start.add_argv(argument); }
    return start;
  }
  std::string Output(const agentpb::ExecStart& start) {
    absl::StatusOr<ExecResult> result = Run(client_->Exec(start, 1 << 20, Soon()));
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) { return ""; }
    EXPECT_EQ(result->end.exit_code(), 0) << result->end.ShortDebugString() << result->stderr_data;
    return result->stdout_data;
  }
  std::string Shell(const std::string& script) { return Output(Program({"sh", "-c", script})); }
  std::string Eval(const std::string& code) {
    agentpb::EvalRequest request;
    request.set_code(code);
    const absl::StatusOr<agentpb::EvalResponse> response = Run(client_->Eval(request, Soon()));
    EXPECT_TRUE(response.ok()) << response.status();
    if (!response.ok()) { return ""; }
    EXPECT_FALSE(response->has_error()) << response->error();
    return response->value();
  }

  Runtime runtime_;
  std::unique_ptr<MicroVm> vm_;
  std::shared_ptr<AgentClient> client_;
  std::vector<std::shared_ptr<ExecStream>> held_;
};

// One boot, many looks: a boot takes seconds.
TEST_F(AgentVmTest, PidOneBringsUpAMachineAndServesIt) {
  Boot({.image = "base"});
  for (const char* phase : {"init: PID 1", "modules: ", "root: /dev/vda below a tmpfs overlay", "mounts: done", "serving on /dev/vport"}) {
    EXPECT_NE(vm_->Console().find(std::string("forkd-agent: ") + phase), std::string::npos) << vm_->Console();
  }
  EXPECT_EQ(Shell("tr '\\0' ' ' < /proc/1/cmdline").substr(0, 5), "/init");

  // Mounts.
  const std::string mounts = Shell("cat /proc/mounts");
  for (const char* mount : {"overlay / overlay rw", " /proc proc ", " /sys sysfs ", " /dev devtmpfs ", " /dev/pts devpts ", " /dev/shm tmpfs ", " /run tmpfs ",
                            " /tmp tmpfs ", " /sys/fs/cgroup cgroup2 "}) {
    EXPECT_NE(mounts.find(mount), std::string::npos) << mount << "\n" << mounts;
  }
  EXPECT_EQ(Shell("echo written > /etc/forkd-test && cat /etc/forkd-test && rm /etc/forkd-test"), "written\n");
  EXPECT_EQ(Shell("ls /init /lib/forkd-modules 2>&1 | grep -c 'No such'; true"), "2\n") << "the initramfs is still the root";
  EXPECT_EQ(Shell("stat -c %a /tmp /dev/shm /run"), "1777\n1777\n755\n");

  // Users, terminals, loopback.
  agentpb::ExecStart start = Program({"id"});
  start.set_user("nobody");
  EXPECT_NE(Output(start).find("uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"), std::string::npos);
  start = Program({"sh", "-c", "tty; stty size"});
  start.set_tty(true);
  start.set_rows(50);
  start.set_cols(90);
  EXPECT_EQ(Output(start), "/dev/pts/0\r\n50 90\r\n");
  EXPECT_EQ(Shell("cat /sys/class/net/lo/operstate /sys/class/net/lo/flags"), "unknown\n0x9\n");

  // Orphans are reaped.
  Shell("sh -c 'sh -c \"exit 3\" & exec sleep 0.1' & sleep 0.5");
  EXPECT_EQ(Shell("cat /proc/[0-9]*/stat | awk '$3 == \"Z\"' | wc -l"), "0\n");

  // Killing PID 1 from inside does nothing.
  EXPECT_EQ(Shell("kill -9 1; kill -TERM 1; echo alive"), "alive\n");
}

TEST_F(AgentVmTest, PrepareMakesItAnotherMachine) {
  Boot({.image = "base"});
  agentpb::PrepareRequest request;
  request.set_hostname("child-7");
  request.set_machine_id("00112233445566778899aabbccddeeff");
  request.set_boot_id("01234567-89ab-cdef-0123-456789abcdef");
  request.set_generation(42);
  request.set_entropy(std::string(64, 'e'));
  // Any time but now.
  const int64_t wall = 2'000'000'000'000'000'000;
  for (int round = 0; round < 2; ++round) {
    request.set_wall_clock_ns(wall);
    const absl::StatusOr<agentpb::PrepareResponse> prepared = Run(client_->Prepare(request, Soon()));
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    EXPECT_EQ(prepared->failures_size(), 0) << prepared->ShortDebugString();
    EXPECT_EQ(Shell("hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id /run/forkd/generation"),
              request.hostname() + "\n" + request.hostname() + "\n" + request.machine_id() + "\n" + request.boot_id() + "\n42\n");
    const absl::StatusOr<agentpb::PingResponse> ping = Run(client_->Ping(Soon()));
    ASSERT_TRUE(ping.ok());
    EXPECT_GE(ping->wall_clock_ns(), wall);
    EXPECT_LT(ping->wall_clock_ns(), wall + 120'000'000'000);
    EXPECT_EQ(ping->boot_id(), request.boot_id());
    EXPECT_EQ(ping->generation(), 42u);
    // A clone of the clone.
    request.set_hostname("child-8");
    request.set_boot_id("76543210-89ab-cdef-0123-456789abcdef");
  }
}

TEST_F(AgentVmTest, AHostThatStopsReadingAndGoesLeavesACleanPort) {
  Boot({.image = "base"});
  for (int round = 0; round < 6; ++round) {
    for (int i = 0; i < 2; ++i) {
      agentpb::ExecStart flood = Program({"cat", "/dev/zero"});
      flood.set_output_window_bytes(4 << 20);
      // The stream is not closed in an orderly way: its connection is cut below.
      const auto stream = Run(client_->StartExec(flood, Soon()));
      ASSERT_TRUE(stream.ok());
      ASSERT_TRUE(Run((*stream)->Next(Soon())).ok());
      held_.push_back(*stream);
    }
    Connect();
    EXPECT_EQ(Shell("echo clean"), "clean\n");
    agentpb::PrepareRequest request;
    request.set_entropy(std::string(64, 'e'));
    request.set_kill_orphans(true);
    const absl::StatusOr<agentpb::PrepareResponse> prepared = Run(client_->Prepare(request, Soon()));
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    EXPECT_EQ(prepared->orphans_killed(), 2u);
  }
  runtime_.RunBlocking([](std::vector<std::shared_ptr<ExecStream>>* held) -> Task<void> {
    held->clear();
    co_return;
  }(&held_));
}

TEST_F(AgentVmTest, TheWarmedRunnerAnswersFastAndIsReseeded) {
  Boot({.image = "python"});
  agentpb::WarmupRequest warmup;
  warmup.set_start_runner(true);
  const absl::StatusOr<agentpb::WarmupResponse> warmed = Run(client_->Warmup(warmup, Deadline::In(seconds(180))));
  ASSERT_TRUE(warmed.ok()) << warmed.status();
  EXPECT_NE(warmed->runner_info().find("numpy 1."), std::string::npos) << warmed->runner_info();
  EXPECT_EQ(Eval("int(np.arange(10).sum())"), "45");
  Eval("import random, uuid\nrng = np.random.default_rng(1)\nold = np.random.RandomState(1)");
  std::set<std::string> drawn;
  for (char entropy : {'a', 'b'}) {
    Eval("random.seed(1)\nnp.random.seed(1)\nrng = np.random.default_rng(1)\nold = np.random.RandomState(1)");
    agentpb::PrepareRequest request;
    request.set_entropy(std::string(64, entropy));
    const absl::StatusOr<agentpb::PrepareResponse> prepared = Run(client_->Prepare(request, Soon()));
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    EXPECT_EQ(prepared->failures_size(), 0) << prepared->ShortDebugString();
    for (const char* draw : {"random.random()", "float(np.random.rand())", "float(rng.random())", "float(old.rand())"}) { drawn.insert(Eval(draw)); }
  }
  EXPECT_EQ(drawn.size(), 8u);
  for (const char* seeded : {"0.13436424411240122", "0.417022004702574", "0.5118216247002567"}) { EXPECT_EQ(drawn.count(seeded), 0u) << seeded; }
}

TEST_F(AgentVmTest, WithoutARootItServesFromTheInitramfs) {
  Boot({.image = "base", .with_root = false});
  absl::StatusOr<ExecResult> result = Run(client_->Exec(Program({"/bin/sh"}), 1000, Soon()));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->end.exec_error().reason(), "NOT_FOUND");
  // The only program there is: the agent itself, which as no PID 1 and without arguments says how it is used.
  result = Run(client_->Exec(Program({"/init"}), 1000, Soon()));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->end.exit_code(), 2);
  EXPECT_EQ(result->stderr_data.substr(0, 6), "usage:");
}

TEST_F(AgentVmTest, AFatalErrorSaysWhyAndEndsTheMachine) {
  for (const auto& [options, reason] : std::vector<std::pair<MicroVm::Options, std::string>>{
           {{.sync_argument = "forkd.sync=12"}, "forkd.sync must be 32 hex digits"},
           {{.more_arguments = "forkd.overlay_mib=much"}, "forkd.overlay_mib must be a number"},
       }) {
    vm_ = std::make_unique<MicroVm>(options);
    EXPECT_TRUE(vm_->EndsWithin(90)) << vm_->Console();
    EXPECT_NE(vm_->Console().find("forkd-agent: fatal: kernel command line: " + reason), std::string::npos) << vm_->Console();
  }
}

}  // namespace
}  // namespace forkd::guest
