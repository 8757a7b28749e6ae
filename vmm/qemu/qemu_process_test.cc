// The driver around processes that are no orderly QEMU, and around daemons that die.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "vmm/qemu/qemu_driver.h"
#include "vmm/testing/tiny_guest.h"

namespace forkd::vmm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr MachineShape kShape{.vcpus = 1, .memory_mib = 64};

Deadline Soon() { return Deadline::In(seconds(30)); }

constexpr char kQemu[] = "/usr/bin/qemu-system-x86_64";

std::unique_ptr<VmDriver> NewDriver(VmmSurroundings& around, const std::string& binary = kQemu) {
  // Impostors are shell scripts, whose interpreter the jail does not show.
  const Walls walls = binary == kQemu ? Walls::kJail : Walls::kNone;
  auto driver = CreateQemuDriverBlocking({.binary = binary, .walls = walls}, around.runtime.executor(), &around.pool, &around.launcher);
  EXPECT_TRUE(driver.ok()) << driver.status();
  return driver.ok() ? *std::move(driver) : nullptr;
}

BootSpec NewBoot(VmmSurroundings& around, std::shared_ptr<RootImage> ram) {
  return {.id = "parent", .shape = kShape, .kernel = OpenTinyGuest(), .kernel_args = kTinyGuestArgs, .ram = std::move(ram), .run_dir = around.NewRunDir()};
}

std::shared_ptr<RootImage> NewRam() { return std::make_shared<RootImage>(*RootImage::CreateBlocking("test", kShape.memory_mib << 20)); }

struct Impostor {
  const char* name;
  const char* behaviour;  // of a shell script that stands for QEMU
  const char* reason;
  const char* words;
};

class ImpostorTest : public testing::TestWithParam<Impostor> {};

// Greets, takes commands, and answers each with what ANSWER makes of its id.
#define FORKD_FAKE_QMP(ANSWER)                                                                                                              \
  "exec python3 -c '\n"                                                                                                                     \
  "import json, socket\n"                                                                                                                   \
  "c, _ = socket.socket(fileno=11).accept()\n"                                                                                              \
  "c.sendall(b\"{\\\"QMP\\\": {\\\"version\\\": {\\\"qemu\\\": {\\\"major\\\": 7, \\\"minor\\\": 2}}}}\\n\")\n"                              \
  "for line in c.makefile(\"r\"):\n"                                                                                                        \
  "    q = json.loads(line)\n"                                                                                                              \
  "    c.sendall((" ANSWER ").encode() + b\"\\n\")\n"                                                                                       \
  "'"

INSTANTIATE_TEST_SUITE_P(
    Behaviours, ImpostorTest,
    testing::Values(Impostor{"ExitsWithWords", "echo 'out of cheese' >&2; exit 3", "VMM_FAILED", "exited with status 3; it said: out of cheese"},
                    Impostor{"DiesOfASignal", "kill -SEGV $$", "VMM_FAILED", "signal 11"},
                    Impostor{"NeverGreets", "exec sleep 1000", "DEADLINE", "greet"},
                    Impostor{"GreetsAndHangs", FORKD_FAKE_QMP("\"\" if q[\"execute\"] == \"qmp_capabilities\" else \"\""), "DEADLINE", "qmp_capabilities"},
                    Impostor{"AnswersGarbage", FORKD_FAKE_QMP("\"garbage\""), "VMM_PROTOCOL", "not a JSON object"},
                    Impostor{"AnswersOthers", FORKD_FAKE_QMP("json.dumps({\"return\": {}, \"id\": \"x\"})"), "VMM_PROTOCOL", "no command of ours"},
                    Impostor{"RefusesEverything", FORKD_FAKE_QMP("json.dumps({\"error\": {\"class\": \"GenericError\", \"desc\": \"no way\"}, \"id\": q[\"id\"]})"),
                             "VMM_FAILED", "no way"},
                    Impostor{"AnswersNothingOfUse", FORKD_FAKE_QMP("json.dumps({\"return\": [], \"id\": q[\"id\"]})"), "VMM_PROTOCOL", "query-status"},
                    Impostor{"Floods", FORKD_FAKE_QMP("\"x\" * 1000000"), "VMM_PROTOCOL", "a line of more than"}),
    [](const testing::TestParamInfo<Impostor>& info) { return std::string(info.param.name); });

TEST_P(ImpostorTest, IsRefusedAndLeavesNothing) {
  VmmSurroundings around;
  const std::string binary = around.scratch + "/qemu";
  std::ofstream(binary) << "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version 7.2.0'; exit; fi\n" << GetParam().behaviour << "\n";
  ASSERT_EQ(::chmod(binary.c_str(), 0755), 0);
  const std::unique_ptr<VmDriver> driver = NewDriver(around, binary);
  ASSERT_NE(driver, nullptr);
  BootSpec spec = NewBoot(around, NewRam());
  const std::string run_dir = spec.run_dir;
  const bool hangs = GetParam().reason == std::string("DEADLINE");
  const auto refused = around.Await(driver->Boot(std::move(spec), Deadline::In(hangs ? milliseconds(700) : milliseconds(20000))));
  EXPECT_EQ(ReasonOf(refused.status()), GetParam().reason) << refused.status();
  EXPECT_TRUE(absl::StrContains(refused.status().message(), GetParam().words)) << refused.status();
  EXPECT_TRUE(std::filesystem::is_empty(run_dir));
  EXPECT_EQ(driver->KillStraysBlocking(around.scratch + "/", {}), 0) << "no process is left";
}

TEST(QemuProcess, ABinaryThatVanishesIsSaidToBeMissing) {
  VmmSurroundings around;
  const std::string binary = around.scratch + "/qemu";
  std::ofstream(binary) << "#!/bin/sh\necho 'QEMU emulator version 7.2.0'\n";
  ASSERT_EQ(::chmod(binary.c_str(), 0755), 0);
  const std::unique_ptr<VmDriver> driver = NewDriver(around, binary);
  ASSERT_NE(driver, nullptr);
  ASSERT_EQ(::unlink(binary.c_str()), 0);
  BootSpec spec = NewBoot(around, NewRam());
  const std::string run_dir = spec.run_dir;
  const auto missing = around.Await(driver->Boot(std::move(spec), Soon()));
  EXPECT_EQ(ReasonOf(missing.status()), "HOST_MISSING") << missing.status();
  EXPECT_TRUE(std::filesystem::is_empty(run_dir));
}

TEST(QemuProcess, OutlivesADaemonThatIsKilledAndIsAdoptedByTheNext) {
  // The first daemon is a process of its own, started before this one has threads. It says whom it has started, and is killed.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::string scratch = absl::StrCat(std::getenv("TEST_TMPDIR"), "/killed-daemon");
  std::filesystem::create_directories(scratch);
  const pid_t daemon = ::fork();
  if (daemon == 0) {
    VmmSurroundings around;
    const std::unique_ptr<VmDriver> driver = NewDriver(around);
    BootSpec spec = NewBoot(around, NewRam());
    spec.run_dir = scratch;
    auto vm = around.Await(driver->Boot(std::move(spec), Soon()));
    const UniqueFd agent = *around.Await((*vm)->ConnectAgent(Soon()));
    ProcessId process = (*vm)->process();
    if (Ask(agent.get(), "epoch 42") != "epoch 42") { process.pid = 0; }
    (void)!::write(ends[1], &process, sizeof(process));
    for (;;) { ::pause(); }
  }
  ProcessId process;
  ASSERT_EQ(::read(ends[0], &process, sizeof(process)), static_cast<ssize_t>(sizeof(process)));
  ASSERT_GT(process.pid, 0);
  ASSERT_EQ(::kill(daemon, SIGKILL), 0);
  ASSERT_EQ(::waitpid(daemon, nullptr, 0), daemon);
  ::close(ends[0]);
  ::close(ends[1]);

  VmmSurroundings around;
  const std::unique_ptr<VmDriver> driver = NewDriver(around);
  auto adopted = around.Await(driver->Adopt({.id = "again", .process = process, .run_dir = scratch}, Soon()));
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ(*around.Await((*adopted)->QueryStatus(Soon())), VmStatus::kRunning);
  {
    const UniqueFd agent = *around.Await((*adopted)->ConnectAgent(Soon()));
    EXPECT_TRUE(absl::EndsWith(Ask(agent.get(), "ping"), "epoch 42"));
  }
  EXPECT_TRUE(around.Await((*adopted)->Pause(Soon())).ok());
  EXPECT_TRUE(around.Await((*adopted)->SaveDeviceState(Soon())).ok());
  EXPECT_TRUE(around.Await((*adopted)->Kill(Soon())).ok()) << "although it is not our child";
  EXPECT_TRUE(std::filesystem::is_empty(scratch));
  around.OnIoThread([&] { adopted->reset(); });
}

TEST(QemuProcess, ADaemonThatStopsItsRuntimeFirstStillEndsItsVms) {
  ProcessId process;
  {
    VmmSurroundings around;
    const std::unique_ptr<VmDriver> driver = NewDriver(around);
    auto vm = around.Await(driver->Boot(NewBoot(around, NewRam()), Soon()));
    ASSERT_TRUE(vm.ok()) << vm.status();
    process = (*vm)->process();
    around.runtime.Stop();
  }
  const auto pidfd = Pidfd::Open(process);
  if (pidfd.ok()) {
    pollfd entry{.fd = pidfd->fd(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
  }
  ::waitpid(process.pid, nullptr, 0);
}

}  // namespace
}  // namespace forkd::vmm
