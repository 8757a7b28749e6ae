// The daemon's one asynchronous runtime: an io_context, run by one thread, on which every coroutine of the daemon lives. One thread is
// enough, because nothing on it blocks (blocking work goes to a BlockingPool) and the heavy work is in the VMMs; and it makes the state of
// every sandbox single-threaded without a strand each (docs/decisions).
#ifndef FORKD_BASE_RUNTIME_H_
#define FORKD_BASE_RUNTIME_H_

#include <memory>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "base/async.h"

namespace forkd {

class Runtime {
 public:
  Runtime();
  // Stops and joins. Coroutines that still wait are destroyed, not resumed: their owners should have ended them before.
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Starts the I/O thread. Once.
  void Start();
  // Stops the I/O thread and joins it. Idempotent. Not from the I/O thread.
  void Stop();

  Executor executor() const;
  // Any thread: runs `task` on the I/O thread. Whatever leaves it is a bug and ends the process.
  void Spawn(Task<void> task);
  // Any thread: runs `fn` on the I/O thread.
  void Post(absl::AnyInvocable<void()> fn);
  // Any thread but the I/O one: runs `task` to its end and returns. For main() and tests.
  void RunBlocking(Task<void> task);
  bool OnIoThread() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Spawns on the executor of an object that has no Runtime at hand. Same rules as Runtime::Spawn.
void SpawnOn(const Executor& executor, Task<void> task);

}  // namespace forkd

#endif  // FORKD_BASE_RUNTIME_H_
