// Many tasks, a bounded number at a time.
#ifndef FORKD_BASE_TASK_GROUP_H_
#define FORKD_BASE_TASK_GROUP_H_

#include <cstddef>
#include <functional>

#include "base/async.h"

namespace forkd {

// Runs make(0) … make(count - 1), at most `window` at a time, in order of their index, and returns when all have ended. `make` is called on
// the I/O thread just before its task starts; a task reports its own failures. `make` must be a plain function or a lambda that *calls* a
// coroutine, never itself one.
Task<void> RunWindowed(std::size_t count, std::size_t window, std::function<Task<void>(std::size_t)> make);

}  // namespace forkd

#endif  // FORKD_BASE_TASK_GROUP_H_
