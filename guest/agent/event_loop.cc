#include "guest/agent/event_loop.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "guest/agent/console.h"

namespace forkd::agent {

using std::chrono::steady_clock;

EventLoop::EventLoop() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigprocmask(SIG_BLOCK, &children, nullptr);
  signals_ = UniqueFd(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!epoll_ || !signals_) { Fatal("epoll or signalfd"); }
  Add(signals_.get(), EPOLLIN, [this](uint32_t) {
    signalfd_siginfo info;
    while (read(signals_.get(), &info, sizeof info) == sizeof info) {}
    Reap();
  });
}

void EventLoop::Add(int fd, uint32_t events, FdHandler handler) {
  auto entry = std::make_shared<Handler>(Handler{next_id_++, std::move(handler)});
  epoll_event event{};
  event.events = events;
  event.data.u64 = static_cast<uint64_t>(fd);
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) { Fatal("epoll_ctl"); }
  handlers_[fd] = std::move(entry);
}

void EventLoop::Remove(int fd) {
  if (handlers_.erase(fd) > 0) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }
}

EventLoop::TimerId EventLoop::After(std::chrono::nanoseconds delay, std::function<void()> fn) {
  const steady_clock::time_point now = steady_clock::now();
  const steady_clock::time_point when = delay > steady_clock::time_point::max() - now ? steady_clock::time_point::max() : now + delay;
  const TimerId id = next_id_++;
  timers_[{when, id}] = std::move(fn);
  return id;
}

void EventLoop::Cancel(TimerId id) {
  // A handful of timers at most: one a running program.
  for (auto it = timers_.begin(); it != timers_.end(); ++it) {
    if (it->first.second == id) {
      timers_.erase(it);
      return;
    }
  }
}

int EventLoop::TimeoutMs() const {
  if (timers_.empty()) { return -1; }
  const auto left = timers_.begin()->first.first - steady_clock::now();
  if (left <= left.zero()) { return 0; }
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count() + 1;
  return static_cast<int>(ms < 60'000 ? ms : 60'000);
}

void EventLoop::RunTimers() {
  while (!timers_.empty() && timers_.begin()->first.first <= steady_clock::now()) {
    std::function<void()> fn = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    fn();
  }
}

void EventLoop::Reap() {
  int status = 0;
  pid_t pid = 0;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    const auto found = on_exit_.find(pid);
    if (found == on_exit_.end()) { continue; }
    std::function<void(int)> fn = std::move(found->second);
    on_exit_.erase(found);
    fn(status);
  }
}

void EventLoop::Run() {
  epoll_event events[16];
  while (!stopped_) {
    const int count = epoll_wait(epoll_.get(), events, 16, TimeoutMs());
    if (count < 0 && errno != EINTR) { Fatal("epoll_wait"); }
    // A handler may remove descriptors, and a new one may get the same number: only handlers that were there before the wait run now.
    const uint64_t newest = next_id_;
    for (int i = 0; i < count && !stopped_; ++i) {
      const auto found = handlers_.find(static_cast<int>(events[i].data.u64));
      if (found == handlers_.end() || found->second->id >= newest) { continue; }
      const std::shared_ptr<Handler> handler = found->second;
      handler->fn(events[i].events);
    }
    RunTimers();
  }
}

}  // namespace forkd::agent
