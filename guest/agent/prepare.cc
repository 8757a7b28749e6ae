#include "guest/agent/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "guest/agent/console.h"
#include "guest/agent/small_file.h"

namespace forkd::agent {
namespace {

namespace pb = ::forkd::agent::v1;

constexpr const char* kBootIdPath = "/proc/sys/kernel/random/boot_id";
constexpr std::size_t kMinEntropyBytes = 64;
constexpr std::size_t kMaxEntropyBytes = 512;

bool AllIn(const std::string& text, const char* allowed) { return text.find_first_not_of(allowed) == std::string::npos; }

bool IsUuid(const std::string& text) {
  if (text.size() != 36) { return false; }
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : strchr("0123456789abcdef", text[i]) == nullptr) { return false; }
  }
  return true;
}

Status Check(const pb::PrepareRequest& request) {
  if (request.entropy().size() < kMinEntropyBytes || request.entropy().size() > kMaxEntropyBytes) {
    return {Code::kInvalidArgument, "entropy: must be 64 to 512 bytes"};
  }
  if (request.hostname().size() > 64 || !AllIn(request.hostname(), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-")) {
    return {Code::kInvalidArgument, "hostname: must be at most 64 of [A-Za-z0-9.-]"};
  }
  if (!request.machine_id().empty() && (request.machine_id().size() != 32 || !AllIn(request.machine_id(), "0123456789abcdef"))) {
    return {Code::kInvalidArgument, "machine_id: must be 32 lower-case hex digits"};
  }
  if (!request.boot_id().empty() && !IsUuid(request.boot_id())) { return {Code::kInvalidArgument, "boot_id: must be a UUID in lower case"}; }
  if (request.wall_clock_ns() < 0) { return {Code::kInvalidArgument, "wall_clock_ns: negative"}; }
  return {};
}

// Empty: done. Otherwise what went wrong.
std::string WriteWhole(const std::string& path, const std::string& content) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) { return "open " + path + ": " + ErrnoText(errno); }
  if (write(fd.get(), content.data(), content.size()) != static_cast<ssize_t>(content.size())) { return "write " + path + ": " + ErrnoText(errno); }
  return "";
}

std::string AddEntropy(const std::string& entropy) {
  UniqueFd fd(open("/dev/urandom", O_RDWR | O_CLOEXEC));
  if (!fd) { return "open /dev/urandom: " + ErrnoText(errno); }
  // random(4): rand_pool_info ends in the bytes.
  std::vector<int> storage((sizeof(rand_pool_info) + entropy.size()) / sizeof(int) + 1);
  auto* info = reinterpret_cast<rand_pool_info*>(storage.data());
  info->entropy_count = static_cast<int>(entropy.size() * 8);
  info->buf_size = static_cast<int>(entropy.size());
  memcpy(info->buf, entropy.data(), entropy.size());
  if (ioctl(fd.get(), RNDADDENTROPY, info) != 0) { return "RNDADDENTROPY: " + ErrnoText(errno); }
  if (ioctl(fd.get(), RNDRESEEDCRNG) != 0) { return "RNDRESEEDCRNG: " + ErrnoText(errno); }
  return "";
}

std::string SetClock(int64_t wall_clock_ns) {
  timespec time{};
  time.tv_sec = wall_clock_ns / 1'000'000'000;
  time.tv_nsec = wall_clock_ns % 1'000'000'000;
  return clock_settime(CLOCK_REALTIME, &time) == 0 ? "" : "clock_settime: " + ErrnoText(errno);
}

std::string SetHostname(const std::string& hostname) {
  if (sethostname(hostname.data(), hostname.size()) != 0) { return "sethostname: " + ErrnoText(errno); }
  return WriteWhole("/etc/hostname", hostname + "\n");
}

std::string SetBootId(const std::string& run_dir, const std::string& boot_id) {
  const std::string file = run_dir + "/boot_id";
  if (std::string error = WriteWhole(file, boot_id + "\n"); !error.empty()) { return error; }
  // The second time the file is mounted already: its new content shows.
  struct stat mounted {};
  struct stat own {};
  if (stat(kBootIdPath, &mounted) == 0 && stat(file.c_str(), &own) == 0 && mounted.st_dev == own.st_dev && mounted.st_ino == own.st_ino) { return ""; }
  return mount(file.c_str(), kBootIdPath, nullptr, MS_BIND, nullptr) == 0 ? "" : "mount over boot_id: " + ErrnoText(errno);
}

}  // namespace

std::string BootId() {
  const std::string content = ReadSmallFile(kBootIdPath, 64);
  return content.substr(0, content.find('\n'));
}

void Preparer::MakeIdentityFiles() {
  if (mkdir(run_dir_.c_str(), 0755) != 0 && errno != EEXIST) { Say("mkdir " + run_dir_ + ": " + ErrnoText(errno)); }
  // Nothing here is fatal: Prepare tries again, and reports.
  for (const std::string& error : {WriteWhole(run_dir_ + "/generation", "0\n"), SetBootId(run_dir_, BootId()), SetHostname("forkd"),
                                   // systemd's word for an id that is yet to come (machine-id(5)).
                                   WriteWhole("/etc/machine-id", "uninitialized\n")}) {
    if (!error.empty()) { Say(error); }
  }
}

void Preparer::Prepare(const pb::PrepareRequest& request, Call call) {
  if (const Status status = Check(request); !status.ok()) {
    call.Finish(status);
    return;
  }
  auto response = std::make_shared<pb::PrepareResponse>();
  const auto fail = [response](const char* step, const std::string& error) {
    if (error.empty()) { return; }
    pb::PrepareFailure* failure = response->add_failures();
    failure->set_step(step);
    failure->set_message(error);
  };
  const std::string foreign = machine_ == Machine::kOwn ? "" : "the agent is not PID 1: this machine is not its own";
  const auto own = [&foreign](auto step) { return foreign.empty() ? step() : foreign; };

  if (request.kill_orphans()) { response->set_orphans_killed(execs_->KillOrphans()); }
  fail("entropy", own([&] { return AddEntropy(request.entropy()); }));
  if (request.wall_clock_ns() > 0) {
    fail("clock", own([&] { return SetClock(request.wall_clock_ns()); }));
  }
  if (!request.hostname().empty()) {
    fail("hostname", own([&] { return SetHostname(request.hostname()); }));
  }
  if (!request.machine_id().empty()) {
    fail("machine_id", own([&] { return WriteWhole("/etc/machine-id", request.machine_id() + "\n"); }));
  }
  if (mkdir(run_dir_.c_str(), 0755) != 0 && errno != EEXIST) {
    fail("generation", "mkdir " + run_dir_ + ": " + ErrnoText(errno));
  } else {
    fail("generation", WriteWhole(run_dir_ + "/generation", std::to_string(request.generation()) + "\n"));
    if (!request.boot_id().empty()) {
      fail("boot_id", own([&] { return SetBootId(run_dir_, request.boot_id()); }));
    }
  }
  generation_ = request.generation();
  runner_->Reseed(request.entropy(), [response, call, fail](const std::string& error) {
    fail("runner_reseed", error);
    call.Reply(*response);
  });
}

}  // namespace forkd::agent
