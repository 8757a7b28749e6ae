// Waiting, in coroutines: a point in time, or an event that another coroutine of the same runtime sets.
#ifndef FORKD_BASE_ASYNC_EVENT_H_
#define FORKD_BASE_ASYNC_EVENT_H_

#include <memory>

#include "base/async.h"
#include "base/deadline.h"

namespace forkd {

// Waits until `deadline`. For time itself (a lifetime, a back-off), never in place of an event.
Task<void> SleepUntil(Deadline deadline);

// A level-triggered event: once set, every Wait returns at once until Reset. I/O thread only. Waiters hold the state alive, so the event may
// be destroyed while they wait (they then run into their deadline, or are woken if the owner set it first).
class AsyncEvent {
 public:
  explicit AsyncEvent(Executor executor);
  ~AsyncEvent();
  AsyncEvent(const AsyncEvent&) = delete;
  AsyncEvent& operator=(const AsyncEvent&) = delete;

  void Set();
  void Reset();
  bool IsSet() const;
  // True if the event was set, false if the deadline passed first.
  Task<bool> Wait(Deadline deadline);

 private:
  struct State;
  static Task<bool> WaitOn(std::shared_ptr<State> state, Deadline deadline);
  std::shared_ptr<State> state_;
};

}  // namespace forkd

#endif  // FORKD_BASE_ASYNC_EVENT_H_
