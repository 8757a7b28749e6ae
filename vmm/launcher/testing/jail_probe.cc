// An attacker in the VMM's place: tries what its arguments name, and writes "yes" or "no: why" for each to standard error. Static, so that it needs
// nothing of the host but itself.
//
//   jail_probe ATTACK[=ARGUMENT] …
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sched.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>

namespace {

// Each attack: true if it got through. errno says why not.
bool OpenFile(const std::string& path) { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC) >= 0; }
bool WriteFile(const std::string& path) { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600) >= 0; }
bool MakeFile(const std::string& path) { return ::mkdir(path.c_str(), 0700) == 0; }
bool Signal(const std::string& pid) { return ::kill(std::atoi(pid.c_str()), 0) == 0; }
bool Trace(const std::string& pid) {
  if (::ptrace(PTRACE_ATTACH, std::atoi(pid.c_str()), nullptr, nullptr) != 0) { return false; }
  ::waitpid(std::atoi(pid.c_str()), nullptr, __WALL);
  ::ptrace(PTRACE_DETACH, std::atoi(pid.c_str()), nullptr, nullptr);
  return true;
}
bool SeeProcess(const std::string& pid) { return ::access(("/proc/" + pid + "/status").c_str(), F_OK) == 0; }
bool Connect(const std::string& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::atoi(port.c_str())));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return fd >= 0 && ::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0;
}
bool AbstractSocket(const std::string& name) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct {
    sa_family_t family = AF_UNIX;
    char path[108] = {};
  } to;
  std::memcpy(to.path + 1, name.data(), name.size());
  return fd >= 0 && ::connect(fd, reinterpret_cast<sockaddr*>(&to), static_cast<socklen_t>(sizeof(to.family) + 1 + name.size())) == 0;
}
bool Mount(const std::string&) {
  // Private first: what the control mounts must not reach the host.
  return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("none", "/proc", "tmpfs", 0, nullptr) == 0;
}
bool BecomeRoot(const std::string&) { return ::setuid(0) == 0 && ::geteuid() == 0 && ::access("/root", R_OK) == 0; }
bool LoadModule(const std::string&) {
  // With the right to, the kernel looks at the (empty) image and says ENOEXEC or EINVAL; without it, EPERM before anything else.
  return ::syscall(SYS_init_module, "", 0UL, "") == 0 || (errno != EPERM && errno != ENOSYS);
}
bool SetClock(const std::string&) {
  // Only asks: CAP_SYS_TIME in the effective set is what the call would need.
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  ::syscall(SYS_capget, &header, data);
  errno = EPERM;
  return (data[0].effective & (1u << CAP_SYS_TIME)) != 0;
}
bool HasCapability(const std::string&) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  ::syscall(SYS_capget, &header, data);
  bool bounding = false;
  for (unsigned long c = 0; c <= CAP_LAST_CAP; ++c) { bounding |= ::prctl(PR_CAPBSET_READ, c, 0, 0, 0) == 1; }
  errno = EPERM;
  return bounding || (data[0].effective | data[0].permitted | data[0].inheritable | data[1].effective | data[1].permitted) != 0;
}
bool GainPrivileges(const std::string&) {
  errno = EPERM;
  return ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0;
}
bool RaiseCoreLimit(const std::string&) {
  const rlimit limit{RLIM_INFINITY, RLIM_INFINITY};
  return ::setrlimit(RLIMIT_CORE, &limit) == 0;
}
bool LowerOomScore(const std::string&) {
  const int fd = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  return fd >= 0 && ::write(fd, "-900", 4) == 4;
}
bool WriteDescriptor(const std::string& fd) { return ::pwrite(std::atoi(fd.c_str()), "x", 1, 0) == 1; }
bool ReopenAndWrite(const std::string& fd) {
  const int again = ::open(("/proc/self/fd/" + fd).c_str(), O_RDWR | O_CLOEXEC);
  return again >= 0 && ::pwrite(again, "x", 1, 0) == 1;
}
bool TruncateDescriptor(const std::string& fd) { return ::ftruncate(std::atoi(fd.c_str()), 0) == 0; }
bool MapShared(const std::string& fd) {
  return ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, std::atoi(fd.c_str()), 0) != MAP_FAILED;
}
bool HasDescriptor(const std::string& fd) { return ::fcntl(std::atoi(fd.c_str()), F_GETFD) >= 0; }
bool SeeNetwork(const std::string&) {
  // Any interface but a loopback that is down.
  struct if_nameindex* all = ::if_nameindex();
  int others = 0;
  for (struct if_nameindex* i = all; i != nullptr && i->if_index != 0; ++i) { others += std::strcmp(i->if_name, "lo") != 0; }
  errno = ENODEV;
  return others > 0;
}
bool SeeHostName(const std::string& name) {
  char buffer[256] = {};
  ::gethostname(buffer, sizeof(buffer) - 1);
  errno = ENOENT;
  return name == buffer;
}

const std::map<std::string, bool (*)(const std::string&)> kAttacks = {
    {"open", OpenFile},           {"write", WriteFile},        {"mkdir", MakeFile},       {"signal", Signal},
    {"trace", Trace},             {"see-process", SeeProcess}, {"connect", Connect},      {"abstract", AbstractSocket},
    {"mount", Mount},             {"setuid", BecomeRoot},      {"module", LoadModule},    {"clock", SetClock},
    {"capability", HasCapability}, {"new-privs", GainPrivileges}, {"core", RaiseCoreLimit}, {"oom", LowerOomScore},
    {"fd-write", WriteDescriptor}, {"fd-reopen", ReopenAndWrite}, {"fd-truncate", TruncateDescriptor}, {"fd-map", MapShared},
    {"has-fd", HasDescriptor},    {"network", SeeNetwork},     {"hostname", SeeHostName},
};

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const std::size_t equals = word.find('=');
    const auto attack = kAttacks.find(word.substr(0, equals));
    if (attack == kAttacks.end()) {
      std::fprintf(stderr, "%s unknown attack\n", argv[i]);
      return 2;
    }
    errno = 0;
    const bool through = attack->second(equals == std::string::npos ? "" : word.substr(equals + 1));
    std::fprintf(stderr, "%s %s\n", argv[i], through ? "yes" : (std::string("no: ") + std::strerror(errno)).c_str());
  }
  return 0;
}
