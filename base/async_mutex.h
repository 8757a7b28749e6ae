// Mutual exclusion of coroutines over their waits: for a transition that must not interleave with another of the same object. First come,
// first served. I/O thread only. Not for data: between two waits nothing interleaves anyway.
#ifndef FORKD_BASE_ASYNC_MUTEX_H_
#define FORKD_BASE_ASYNC_MUTEX_H_

#include <list>
#include <memory>
#include <optional>

#include "base/async.h"
#include "base/async_event.h"
#include "base/deadline.h"

namespace forkd {

class AsyncMutex {
  struct State;

 public:
  // Holds the mutex until destroyed; keeps its state alive, so it may outlive the AsyncMutex.
  class Guard {
   public:
    Guard(Guard&& other) noexcept = default;
    Guard& operator=(Guard&& other) noexcept;
    ~Guard() { Release(); }

   private:
    friend class AsyncMutex;
    explicit Guard(std::shared_ptr<State> state) : state_(std::move(state)) {}
    void Release();
    std::shared_ptr<State> state_;
  };

  explicit AsyncMutex(Executor executor);
  AsyncMutex(const AsyncMutex&) = delete;
  AsyncMutex& operator=(const AsyncMutex&) = delete;

  // Empty if the deadline passed first.
  Task<std::optional<Guard>> Acquire(Deadline deadline);
  bool IsHeld() const;

 private:
  struct State {
    explicit State(Executor e) : executor(std::move(e)) {}
    Executor executor;
    bool held = false;
    std::list<AsyncEvent*> waiters;
  };
  static Task<std::optional<Guard>> AcquireOn(std::shared_ptr<State> state, Deadline deadline);
  std::shared_ptr<State> state_;
};

}  // namespace forkd

#endif  // FORKD_BASE_ASYNC_MUTEX_H_
