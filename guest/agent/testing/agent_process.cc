#include "guest/agent/testing/agent_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace forkd::guest {
namespace {

void Check(bool good, const char* what) {
  if (good) { return; }
  perror(what);
  abort();
}

}  // namespace

AgentProcess::AgentProcess(const std::string& runner) : token_(ttrpc::SyncToken::Random()) {
  const char* base = getenv("TEST_TMPDIR");
  folder_ = std::string(base != nullptr ? base : "/tmp") + "/agent-XXXXXX";
  Check(mkdtemp(folder_.data()) != nullptr, "mkdtemp");
  int ends[2];
  Check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  agent_end_ = UniqueFd(ends[0]);
  UniqueFd theirs(ends[1]);
  const std::string number = std::to_string(theirs.get());
  const std::string hex = token_.ToHex();
  const std::string program = runner.empty() || runner[0] == '/' ? runner : std::filesystem::absolute(runner).string();
  const std::string run_dir = folder_ + "/run";
  const char* binary = "guest/agent/forkd-agent";
  pid_ = fork();
  Check(pid_ >= 0, "fork");
  if (pid_ == 0) {
    fcntl(theirs.get(), F_SETFD, 0);
    execl(binary, binary, "--serve-fd", number.c_str(), "--sync", hex.c_str(), "--runner", program.c_str(), "--run-dir", run_dir.c_str(), nullptr);
    perror(binary);
    _exit(127);
  }
  wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  relay_ = std::thread([this] { Relay(); });
}

AgentProcess::~AgentProcess() {
  stop_ = true;
  eventfd_write(wake_.get(), 1);
  relay_.join();
  agent_end_.reset();  // The agent ends when its stream does, and takes along what it started.
  for (int i = 0; i < 500; ++i) {
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      break;
    }
    usleep(10'000);
  }
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

UniqueFd AgentProcess::Attach() {
  int ends[2];
  Check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    next_host_ = UniqueFd(ends[0]);
  }
  eventfd_write(wake_.get(), 1);
  return UniqueFd(ends[1]);
}

long AgentProcess::PrivateKib() const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/smaps_rollup");
  long total = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    long kib = 0;
    words >> name >> kib;
    if (name == "Private_Dirty:") { total += kib; }
  }
  return total;
}

void AgentProcess::Relay() {
  // At most one piece is held in each direction; a piece that could not be delivered before the host went is delivered to the next one.
  UniqueFd host;
  std::string to_agent;
  std::string to_host;
  const auto forward = [](int fd, std::string* data) {
    const ssize_t put = send(fd, data->data(), data->size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put > 0) { data->erase(0, static_cast<std::size_t>(put)); }
    return put >= 0 || errno == EAGAIN;
  };
  const auto fill = [](int fd, std::string* data) {
    char buffer[16 * 1024];
    const ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) { data->assign(buffer, static_cast<std::size_t>(got)); }
    return got > 0 || (got < 0 && errno == EAGAIN);
  };
  bool agent_alive = true;
  while (!stop_) {
    pollfd polls[3] = {
        {wake_.get(), POLLIN, 0},
        {agent_alive ? agent_end_.get() : -1, static_cast<short>((to_host.empty() ? POLLIN : 0) | (to_agent.empty() ? 0 : POLLOUT)), 0},
        {host.valid() ? host.get() : -1, static_cast<short>((to_agent.empty() ? POLLIN : 0) | (to_host.empty() ? 0 : POLLOUT)), 0},
    };
    poll(polls, 3, -1);
    if ((polls[0].revents & POLLIN) != 0) {
      eventfd_t value;
      eventfd_read(wake_.get(), &value);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (next_host_) {
        host = std::move(next_host_);
        continue;
      }
    }
    if ((polls[1].revents & (POLLIN | POLLHUP)) != 0 && to_host.empty() && !fill(agent_end_.get(), &to_host)) {
      agent_alive = false;
      host.reset();
    }
    if (agent_alive && !to_agent.empty() && !forward(agent_end_.get(), &to_agent)) { agent_alive = false; }
    if (host && (polls[2].revents & (POLLIN | POLLHUP)) != 0 && to_agent.empty() && !fill(host.get(), &to_agent)) { host.reset(); }
    if (host && !to_host.empty() && !forward(host.get(), &to_host)) { host.reset(); }
  }
}

}  // namespace forkd::guest
