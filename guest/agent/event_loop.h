// The agent's one loop: descriptors, timers, ended children. Single-threaded. While nothing is under way it sleeps in epoll_wait without a timeout,
// so an idle clone touches no memory.
#ifndef FORKD_GUEST_AGENT_EVENT_LOOP_H_
#define FORKD_GUEST_AGENT_EVENT_LOOP_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "base/unique_fd.h"

namespace forkd::agent {

class EventLoop {
 public:
  using FdHandler = std::function<void(uint32_t epoll_events)>;
  using TimerId = uint64_t;

  EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // `fd` is borrowed and must be removed before it is closed. A descriptor whose events are not wanted for a while must be removed, not modified:
  // EPOLLHUP is always reported.
  void Add(int fd, uint32_t events, FdHandler handler);
  void Remove(int fd);
  bool Watches(int fd) const { return handlers_.count(fd) > 0; }

  TimerId After(std::chrono::nanoseconds delay, std::function<void()> fn);
  // Of a timer that has run or does not exist: nothing.
  void Cancel(TimerId id);

  // Called once with the wait status of the child `pid` of ours.
  void OnExit(pid_t pid, std::function<void(int wait_status)> fn) { on_exit_[pid] = std::move(fn); }

  // SIGCHLD must be blocked (the loop reads it from a signalfd) and every child is reaped here, also those that nobody asked about (orphans that
  // PID 1 inherits).
  void Run();
  void Stop() { stopped_ = true; }

 private:
  struct Handler {
    uint64_t id;
    FdHandler fn;
  };
  void RunTimers();
  int TimeoutMs() const;
  void Reap();

  UniqueFd epoll_;
  UniqueFd signals_;
  std::map<int, std::shared_ptr<Handler>> handlers_;
  uint64_t next_id_ = 1;
  std::map<std::pair<std::chrono::steady_clock::time_point, TimerId>, std::function<void()>> timers_;
  std::map<pid_t, std::function<void(int)>> on_exit_;
  bool stopped_ = false;
};

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_EVENT_LOOP_H_
