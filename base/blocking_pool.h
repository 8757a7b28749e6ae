// A bounded pool of threads for work that blocks: SQLite, fsync, page copies, process starts.
#ifndef FORKD_BASE_BLOCKING_POOL_H_
#define FORKD_BASE_BLOCKING_POOL_H_

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "base/async.h"

namespace forkd {

class BlockingPool {
 public:
  explicit BlockingPool(int threads);
  // Joins; work that has begun ends first.
  ~BlockingPool();
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;

  // Runs `work` on a thread of the pool and resumes the caller on its own executor with the result. Not cancellable: what has been handed
  // over runs to its end, so `work` may refer to the awaiting coroutine's locals. `work` must not throw.
  template <typename Work>
  Task<std::invoke_result_t<Work>> Run(Work work) {
    using Result = std::invoke_result_t<Work>;
    if constexpr (std::is_void_v<Result>) {
      co_await RunErased(std::move(work));
    } else {
      std::optional<Result> result;
      absl::AnyInvocable<void()> storing = [&result, &work] { result.emplace(work()); };
      co_await RunErased(std::move(storing));
      co_return *std::move(result);
    }
  }

 private:
  Task<void> RunErased(absl::AnyInvocable<void()> work);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace forkd

#endif  // FORKD_BASE_BLOCKING_POOL_H_
