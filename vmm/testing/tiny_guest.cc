#include "vmm/testing/tiny_guest.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/deadline.h"

namespace forkd::vmm {
namespace {

constexpr char kKernelPath[] = "tests/tinyguest/tinyguest.elf";
constexpr auto kAnswerTime = std::chrono::seconds(20);

Task<void> CallAsTask(absl::AnyInvocable<void()>* fn) {
  (*fn)();
  co_return;
}

}  // namespace

VmmSurroundings::VmmSurroundings() {
  const char* base = std::getenv("TEST_TMPDIR");
  std::string pattern = absl::StrCat(base == nullptr ? "/tmp" : base, "/vmm-XXXXXX");
  if (::mkdtemp(pattern.data()) == nullptr) { std::abort(); }
  scratch = pattern;
  runtime.Start();
}

VmmSurroundings::~VmmSurroundings() {
  runtime.Stop();
  std::error_code ignored;
  std::filesystem::remove_all(scratch, ignored);
}

void VmmSurroundings::OnIoThread(absl::AnyInvocable<void()> fn) { runtime.RunBlocking(CallAsTask(&fn)); }

std::string VmmSurroundings::NewRunDir() {
  std::string path = absl::StrCat(scratch, "/run-", next_run_dir_++);
  if (::mkdir(path.c_str(), 0700) != 0) { std::abort(); }
  return path;
}

UniqueFd OpenTinyGuest() {
  UniqueFd fd(::open(kKernelPath, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    std::perror(kKernelPath);
    std::abort();
  }
  return fd;
}

std::string Ask(int agent, const std::string& command) {
  const std::string line = command + "\n";
  if (::send(agent, line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size())) { return "<closed>"; }
  const Deadline deadline = Deadline::In(kAnswerTime);
  std::string answer;
  while (answer.empty() || answer.back() != '\n') {
    pollfd entry{.fd = agent, .events = POLLIN, .revents = 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.Remaining()).count();
    if (::poll(&entry, 1, static_cast<int>(left)) <= 0) { return "<timeout>"; }
    char buffer[512];
    const ssize_t got = ::recv(agent, buffer, sizeof(buffer), 0);
    if (got <= 0) { return "<closed>"; }
    answer.append(buffer, static_cast<std::size_t>(got));
  }
  answer.pop_back();
  return answer;
}

}  // namespace forkd::vmm
