// Each wall of the jail, attacked from inside by a program that the launcher starts in the VMM's place; and the same attack without the jail, which
// must get through, or the test would prove nothing.
#include "vmm/launcher/jail.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "vmm/launcher/launcher.h"
#include "vmm/launcher/uid_pool.h"
#include "vmm/pages/root_image.h"

namespace forkd::vmm {
namespace {

class JailTest : public testing::Test {
 protected:
  JailTest() {
    char name[] = "/tmp/forkd-jail-test-XXXXXX";
    folder_ = ::mkdtemp(name);
    ::chmod(folder_.c_str(), 0755);
    // The probe in a folder that the jail may show.
    probe_folder_ = absl::StrCat(folder_, "/probe");
    std::filesystem::create_directory(probe_folder_);
    const char* source = std::getenv("TEST_SRCDIR");
    std::filesystem::copy_file(absl::StrCat(source, "/forkd/vmm/launcher/jail_probe"), absl::StrCat(probe_folder_, "/jail_probe"));
    run_dir_ = absl::StrCat(folder_, "/run");
    std::filesystem::create_directory(run_dir_);
    ::chmod(run_dir_.c_str(), 0700);
    secret_ = absl::StrCat(folder_, "/secret");
    std::ofstream(secret_) << "secret";
    ::chmod(secret_.c_str(), 0644);  // Its mode does not protect it: only the wall does.
  }
  ~JailTest() override { std::filesystem::remove_all(folder_); }

  // What the probe says of one attack.
  std::string Attack(const std::string& attack, Walls walls, std::vector<InheritedFd> inherited = {}) {
    auto process = launcher_.Spawn({.argv = {absl::StrCat(probe_folder_, "/jail_probe"), attack},
                                    .inherited = std::move(inherited),
                                    .run_dir = run_dir_,
                                    .walls = walls,
                                    .visible_folders = {"/usr", probe_folder_}});
    EXPECT_TRUE(process.ok()) << process.status();
    if (!process.ok()) { return ""; }
    pollfd entry{.fd = process->pidfd.fd(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
    const int status = process->pidfd.ReapIfExited().value_or(-1);
    std::string text;
    char buffer[4096];
    for (ssize_t got; (got = ::read(process->stderr_read.get(), buffer, sizeof(buffer))) > 0;) { text.append(buffer, static_cast<std::size_t>(got)); }
    EXPECT_EQ(status, 0) << text;
    return text;
  }
  void Holds(const std::string& attack, std::vector<InheritedFd> inherited = {}) {
    EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kJail, inherited), " no: ")) << attack << " got through the wall";
    EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kNone, inherited), " yes")) << attack << " fails without the wall: the test proves nothing";
  }

  // For an attack that this host refuses to everybody, root included: the wall is still asked, but the control cannot be.
  void HoldsWhere(bool host_allows_it, const std::string& attack) {
    if (host_allows_it) { return Holds(attack); }
    EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kJail), " no: ")) << attack << " got through the wall";
    std::cout << "control skipped on this host: " << attack << "\n";
  }

  Launcher launcher_;
  std::string folder_;
  std::string probe_folder_;
  std::string run_dir_;
  std::string secret_;
};

// Whether we, and so an unjailed process, have a capability (capability.h's number).
bool WeHave(int capability) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "CapEff:" && status >> word) { return ((std::stoull(word, nullptr, 16) >> capability) & 1) != 0; }
  }
  return false;
}

// Some other process of the host, to be aimed at.
class Bystander {
 public:
  Bystander() : pid_(::fork()) {
    if (pid_ == 0) {
      for (;;) { ::pause(); }
    }
  }
  ~Bystander() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

TEST_F(JailTest, HostFilesCannotBeRead) {
  Holds(absl::StrCat("open=", secret_));
  Holds("open=/etc/passwd");
  Holds("open=/root");
  Holds("open=/var/log");
  Holds("open=/sys/kernel");
}

TEST_F(JailTest, NothingCanBeWritten) {
  Holds(absl::StrCat("write=/usr/forkd-jail-test-", ::getpid()));
  std::filesystem::remove(absl::StrCat("/usr/forkd-jail-test-", ::getpid()));
  Holds(absl::StrCat("mkdir=/forkd-jail-test-", ::getpid()));
  std::filesystem::remove(absl::StrCat("/forkd-jail-test-", ::getpid()));
}

TEST_F(JailTest, OtherProcessesCannotBeSeenSignalledOrTraced) {
  const Bystander other;
  Holds(absl::StrCat("see-process=", other.pid()));
  Holds(absl::StrCat("signal=", other.pid()));
  Holds(absl::StrCat("trace=", other.pid()));
}

TEST_F(JailTest, TheHostsNetworkCannotBeReached) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
  ASSERT_EQ(::listen(listener.get(), 4), 0);
  socklen_t size = sizeof(at);
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size);
  Holds(absl::StrCat("connect=", ntohs(at.sin_port)));
  // Abstract sockets belong to the network namespace.
  const UniqueFd abstract(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const std::string name = absl::StrCat("forkd-jail-test-", ::getpid());
  struct {
    sa_family_t family = AF_UNIX;
    char path[108] = {};
  } to;
  name.copy(to.path + 1, name.size());
  ASSERT_EQ(::bind(abstract.get(), reinterpret_cast<sockaddr*>(&to), static_cast<socklen_t>(sizeof(to.family) + 1 + name.size())), 0);
  ASSERT_EQ(::listen(abstract.get(), 4), 0);
  Holds(absl::StrCat("abstract=", name));
}

TEST_F(JailTest, NoPrivilegeIsLeftAndNoneCanBeGained) {
  Holds("capability");
  Holds("new-privs");
  Holds("setuid");
  Holds("mount");
  Holds("clock");
  HoldsWhere(WeHave(CAP_SYS_MODULE) && std::filesystem::exists("/proc/modules"), "module");
  HoldsWhere(WeHave(CAP_SYS_RESOURCE), "core");
  HoldsWhere(WeHave(CAP_SYS_RESOURCE), "oom");
}

TEST_F(JailTest, TheHostsNameIsNotSeen) {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  Holds(absl::StrCat("hostname=", name));
}

TEST_F(JailTest, TheRootImageCannotBeChangedThroughAnyDescriptor) {
  auto sealed = RootImage::CreateBlocking("jail-test", 4096);
  auto open = RootImage::CreateBlocking("jail-test", 4096);
  ASSERT_TRUE(sealed.ok());
  ASSERT_TRUE(open.ok());
  ASSERT_TRUE(sealed->SealBlocking().ok());
  for (const char* attack : {"fd-write=42", "fd-reopen=42", "fd-map=42", "fd-truncate=42"}) {
    EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kJail, {{sealed->fd(), 42}}), " no: ")) << attack;
    // The control: the wall here is the seal, so what is left out is the seal.
    EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kJail, {{open->fd(), 42}}), " yes")) << attack << " fails without the seal";
  }
}

TEST_F(JailTest, ADescriptorThatWasNotHandedOverIsNotThere) {
  const UniqueFd leaked(::fcntl(::open("/dev/null", O_RDONLY), F_DUPFD, 77));  // Not close-on-exec, on purpose.
  const std::string attack = absl::StrCat("has-fd=", leaked.get());
  EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kJail), " no: "));
  EXPECT_TRUE(absl::StrContains(Attack(attack, Walls::kJail, {{leaked.get(), leaked.get()}}), " yes")) << "handed over, it is there";
}

TEST_F(JailTest, EveryProcessHasAUidOfItsOwn) {
  std::set<uid_t> uids;
  std::vector<SpawnedProcess> alive;
  for (int i = 0; i < 5; ++i) {
    const std::string run_dir = absl::StrCat(run_dir_, i);
    std::filesystem::create_directory(run_dir);
    auto process = launcher_.Spawn({.argv = {"/usr/bin/sleep", "60"}, .run_dir = run_dir, .walls = Walls::kJail});
    ASSERT_TRUE(process.ok()) << process.status();
    uids.insert(process->uid.uid());
    // The kernel's word for it, not ours.
    struct stat st {};
    ASSERT_EQ(::stat(absl::StrCat("/proc/", process->id.pid, "/exe").c_str(), &st), 0);
    const UidLease adopted = Launcher().AdoptUid(process->id);
    EXPECT_EQ(adopted.uid(), process->uid.uid());
    alive.push_back(*std::move(process));
  }
  EXPECT_EQ(uids.size(), 5u);
  EXPECT_EQ(uids.count(0), 0u);
  for (SpawnedProcess& process : alive) {
    EXPECT_TRUE(launcher_.Kill(process.pidfd).ok());
    pollfd entry{.fd = process.pidfd.fd(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&entry, 1, 20'000), 1);
    process.pidfd.ReapIfExited();
  }
}

TEST_F(JailTest, AStepThatFailsEndsTheLaunchAndNamesItself) {
  auto process = launcher_.Spawn({.argv = {"/usr/bin/true"}, .run_dir = absl::StrCat(folder_, "/missing"), .walls = Walls::kJail});
  ASSERT_FALSE(process.ok());
  EXPECT_TRUE(absl::StrContains(process.status().message(), "mount a root")) << process.status();
}

TEST(UidPoolTest, UsesEveryUidBeforeItUsesOneAgain) {
  UidPool pool({.first = 1000, .count = 3});
  auto a = pool.Lease();
  auto b = pool.Lease();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->uid(), 1000u);
  *a = UidLease();
  EXPECT_EQ(pool.Lease()->uid(), 1002u) << "not the one that has just become free";
}

TEST(UidPoolTest, RefusesWhenAllAreInUseAndSkipsAdoptedOnes) {
  UidPool pool({.first = 1000, .count = 2});
  UidLease adopted = pool.Adopt(1000);
  EXPECT_EQ(adopted.uid(), 1000u);
  auto other = pool.Lease();
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(other->uid(), 1001u);
  EXPECT_EQ(pool.Lease().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.Adopt(5).uid(), 0u) << "a uid of somebody else";
}

}  // namespace
}  // namespace forkd::vmm
