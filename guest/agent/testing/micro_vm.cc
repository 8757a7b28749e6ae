#include "guest/agent/testing/micro_vm.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

namespace forkd::guest {
namespace {

void Check(bool good, const char* what) {
  if (good) { return; }
  perror(what);
  abort();
}

std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A microvm's kernel cannot measure it (docs: boot), so it is told.
long TscKhz() {
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC_RAW, &time);
    return time.tv_sec * 1'000'000'000 + time.tv_nsec;
  };
  const long begin = now();
  const unsigned long long ticks = __rdtsc();
  usleep(30'000);
  return static_cast<long>((__rdtsc() - ticks) * 1'000'000 / static_cast<unsigned long long>(now() - begin));
}

// The value of "kernel_args" in image.json, which has no escapes in it.
std::string KernelArguments(const std::string& json) {
  const std::string key = "\"kernel_args\": \"";
  const std::size_t start = json.find(key);
  if (start == std::string::npos) { return ""; }
  return json.substr(start + key.size(), json.find('"', start + key.size()) - start - key.size());
}

std::string WithoutRoot(std::string arguments) {
  const std::size_t start = arguments.find("forkd.root=");
  if (start == std::string::npos) { return arguments; }
  return arguments.erase(start, arguments.find(' ', start) - start);
}

}  // namespace

std::string MicroVm::ImageDir() {
  const char* folder = getenv("FORKD_IMAGE_DIR");
  return folder == nullptr ? "" : folder;
}

MicroVm::MicroVm(const Options& options) : token_(ttrpc::SyncToken::Random()) {
  const char* base = getenv("TEST_TMPDIR");
  folder_ = std::string(base != nullptr ? base : "/tmp") + "/vm-XXXXXX";
  Check(mkdtemp(folder_.data()) != nullptr, "mkdtemp");
  const std::string image = ImageDir() + "/" + options.image;
  std::string arguments = KernelArguments(ReadWhole(image + "/image.json"));
  if (!options.with_root) { arguments = WithoutRoot(arguments); }
  arguments += " console=ttyS0 tsc_early_khz=" + std::to_string(TscKhz()) + " " +
               (options.sync_argument.empty() ? "forkd.sync=" + token_.ToHex() : options.sync_argument) + " " + options.more_arguments;
  // A socket's path may be 107 bytes long: relative to the folder.
  std::vector<std::string> line = {"qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg,tb-size=32", "-cpu", "max", "-m", "256", "-nodefaults",
                                   "-no-user-config", "-no-reboot", "-display", "none", "-kernel", image + "/kernel", "-initrd", image + "/initrd", "-append",
                                   arguments, "-serial", "file:console", "-device", "virtio-serial-device", "-chardev",
                                   "socket,id=agent,path=agent.sock,server=on,wait=off", "-device", "virtserialport,chardev=agent,name=forkd.agent"};
  if (options.with_root) {
    line.insert(line.end(), {"-drive", "if=none,id=root,file=" + image + "/rootfs.squashfs,format=raw,readonly=on", "-device", "virtio-blk-device,drive=root"});
  }
  std::vector<char*> argv;
  for (std::string& word : line) { argv.push_back(word.data()); }
  argv.push_back(nullptr);
  pid_ = fork();
  Check(pid_ >= 0, "fork");
  if (pid_ == 0) {
    // A test that is killed leaves no VM behind.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (chdir(folder_.c_str()) == 0) { execvp(argv[0], argv.data()); }
    perror(argv[0]);
    _exit(127);
  }
}

MicroVm::~MicroVm() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

UniqueFd MicroVm::Attach() const {
  // By a descriptor of the folder: its path may be longer than a socket's may be.
  UniqueFd folder(open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/agent.sock", folder.get());
  for (int i = 0; i < 1000; ++i) {
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) { return fd; }
    usleep(10'000);
  }
  Check(false, "connect to the VMM's socket");
  return UniqueFd();
}

std::string MicroVm::Console() const { return ReadWhole(folder_ + "/console"); }

bool MicroVm::EndsWithin(int seconds) {
  for (int i = 0; i < seconds * 100; ++i) {
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return true;
    }
    usleep(10'000);
  }
  return false;
}

}  // namespace forkd::guest
