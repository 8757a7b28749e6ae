#include "guest/agent/init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <optional>
#include <string>

#include "guest/agent/console.h"

namespace forkd::agent {
namespace {

constexpr const char* kModuleList = "/etc/forkd/modules";
constexpr const char* kModuleDir = "/lib/forkd-modules/";
constexpr const char* kPortName = "forkd.agent";
// Devices appear while their modules' probes run; under emulation on a loaded machine that can take a while.
constexpr int kDeviceWaitMs = 30'000;
constexpr int kDeviceLookMs = 2;

void MountOrDie(const char* source, const std::string& target, const char* type, unsigned long flags, const char* data) {
  mkdir(target.c_str(), 0755);
  if (mount(source, target.c_str(), type, flags, data) != 0) { Fatal("mount " + target); }
}

// For what a small kernel may lack.
void MountOrSay(const char* source, const std::string& target, const char* type, unsigned long flags, const char* data) {
  mkdir(target.c_str(), 0755);
  if (mount(source, target.c_str(), type, flags, data) != 0) { Say("mount " + target + ": " + ErrnoText(errno)); }
}

std::map<std::string, std::string> CommandLine() {
  std::ifstream file("/proc/cmdline");
  std::map<std::string, std::string> options;
  for (std::string word; file >> word;) {
    const std::size_t equals = word.find('=');
    options[word.substr(0, equals)] = equals == std::string::npos ? "" : word.substr(equals + 1);
  }
  return options;
}

void LoadModules() {
  std::ifstream list(kModuleList);
  int loaded = 0;
  for (std::string name; std::getline(list, name);) {
    if (name.empty() || name[0] == '#') { continue; }
    const std::string path = name[0] == '/' ? name : kModuleDir + name + (name.ends_with(".ko") ? "" : ".ko");
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) { Fatal("module " + path); }
    if (syscall(SYS_finit_module, fd.get(), "", 0) != 0 && errno != EEXIST) { Fatal("insert " + path); }
    ++loaded;
    // Its file's memory is worth more than the file.
    unlink(path.c_str());
  }
  Say("modules: " + std::to_string(loaded));
}

template <typename Look>
auto WaitFor(const std::string& what, Look look) {
  for (int waited = 0; waited < kDeviceWaitMs; waited += kDeviceLookMs) {
    if (auto found = look()) { return found; }
    const timespec pause{0, kDeviceLookMs * 1'000'000};
    nanosleep(&pause, nullptr);
  }
  errno = 0;
  Fatal(what + " did not appear");
}

std::string FindPort() {
  DIR* dir = opendir("/sys/class/virtio-ports");
  if (dir == nullptr) { return ""; }
  std::string found;
  while (const dirent* entry = readdir(dir)) {
    std::ifstream file(std::string("/sys/class/virtio-ports/") + entry->d_name + "/name");
    std::string name;
    if (std::getline(file, name) && name == kPortName) { found = entry->d_name; }
  }
  closedir(dir);
  return found;
}

void MountRoot(const std::string& device, const std::string& overlay_mib) {
  WaitFor(device, [&device] { return access(device.c_str(), F_OK) == 0; });
  MountOrDie(device.c_str(), "/lower", "squashfs", MS_RDONLY, nullptr);
  std::string options = "mode=0755";
  if (!overlay_mib.empty()) { options += ",size=" + overlay_mib + "m"; }
  MountOrDie("overlay", "/overlay", "tmpfs", 0, options.c_str());
  mkdir("/overlay/upper", 0755);
  mkdir("/overlay/work", 0755);
  MountOrDie("overlay", "/newroot", "overlay", 0, "lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work");
  for (const char* name : {"/proc", "/sys", "/dev"}) {
    const std::string target = std::string("/newroot") + name;
    mkdir(target.c_str(), 0755);
    if (mount(name, target.c_str(), nullptr, MS_MOVE, nullptr) != 0) { Fatal("move " + target); }
  }
  // A kernel's first root cannot be pivoted away: the new one is moved over it, as switch_root(8) does.
  if (chdir("/newroot") != 0 || mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 || chroot(".") != 0 || chdir("/") != 0) { Fatal("switch root"); }
  Say("root: " + device + " below a tmpfs overlay");
}

void BringUpLoopback() {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  strcpy(request.ifr_name, "lo");
  if (!fd || ioctl(fd.get(), SIOCGIFFLAGS, &request) != 0) { return; }
  request.ifr_flags |= IFF_UP | IFF_RUNNING;
  if (ioctl(fd.get(), SIOCSIFFLAGS, &request) != 0) { Say("loopback: " + ErrnoText(errno)); }
}

}  // namespace

Machine BringUp() {
  MountOrDie("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr);
  MountOrDie("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr);
  mkdir("/dev", 0755);
  // A kernel with CONFIG_DEVTMPFS_MOUNT does not do it for an initramfs.
  if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") != 0 && errno != EBUSY) { Fatal("mount /dev"); }
  if (fcntl(STDERR_FILENO, F_GETFD) < 0) {
    const int console = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int fd : {0, 1, 2}) { dup2(console, fd); }
  }
  Say("init: PID 1 on the initramfs");
  const std::map<std::string, std::string> options = CommandLine();
  const auto option = [&options](const char* name) {
    const auto found = options.find(name);
    return found == options.end() ? std::string() : found->second;
  };
  Machine machine;
  const auto token = ttrpc::SyncToken::FromHex(option("forkd.sync"));
  if (!token.has_value()) {
    errno = 0;
    Fatal("kernel command line: forkd.sync must be 32 hex digits");
  }
  machine.token = *token;
  const std::string overlay_mib = option("forkd.overlay_mib");
  if (overlay_mib.size() > 7 || overlay_mib.find_first_not_of("0123456789") != std::string::npos) {
    errno = 0;
    Fatal("kernel command line: forkd.overlay_mib must be a number");
  }
  LoadModules();
  if (!option("forkd.root").empty()) { MountRoot(option("forkd.root"), overlay_mib); }
  MountOrSay("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5");
  // Each instance of devpts has its own ptmx; the one that devtmpfs offers finds it beside itself.
  MountOrSay("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  MountOrSay("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
  MountOrSay("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  MountOrSay("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr);
  if (symlink("/proc/self/fd", "/dev/fd") != 0) { Say(std::string("symlink in /dev: ") + ErrnoText(errno)); }
  if (symlink("/proc/self/fd/0", "/dev/stdin") != 0) { Say(std::string("symlink in /dev: ") + ErrnoText(errno)); }
  if (symlink("/proc/self/fd/1", "/dev/stdout") != 0) { Say(std::string("symlink in /dev: ") + ErrnoText(errno)); }
  if (symlink("/proc/self/fd/2", "/dev/stderr") != 0) { Say(std::string("symlink in /dev: ") + ErrnoText(errno)); }
  BringUpLoopback();
  Say("mounts: done");
  const std::string port = WaitFor("the virtio-serial port forkd.agent", [] {
    const std::string found = FindPort();
    return found.empty() ? std::optional<std::string>() : std::optional<std::string>(found);
  }).value();
  const std::string path = "/dev/" + port;
  machine.port = UniqueFd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!machine.port) { Fatal("open " + path); }
  Say("serving on " + path);
  return machine;
}

}  // namespace forkd::agent
