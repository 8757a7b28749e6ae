#include "base/task_group.h"

#include <algorithm>
#include <boost/asio/this_coro.hpp>
#include <memory>

#include "base/async_event.h"
#include "base/runtime.h"

namespace forkd {
namespace {

struct Progress {
  explicit Progress(Executor executor) : all_ended(std::move(executor)) {}
  std::size_t next = 0;
  std::size_t workers = 0;
  AsyncEvent all_ended;
};

Task<void> Worker(std::shared_ptr<Progress> progress, std::size_t count, const std::function<Task<void>(std::size_t)>* make) {
  while (progress->next < count) {
    const std::size_t index = progress->next++;
    co_await (*make)(index);
  }
  if (--progress->workers == 0) { progress->all_ended.Set(); }
}

}  // namespace

Task<void> RunWindowed(std::size_t count, std::size_t window, std::function<Task<void>(std::size_t)> make) {
  const Executor executor = co_await boost::asio::this_coro::executor;
  auto progress = std::make_shared<Progress>(executor);
  progress->workers = std::min(count, std::max<std::size_t>(window, 1));
  if (progress->workers == 0) { co_return; }
  for (std::size_t i = 0, n = progress->workers; i < n; ++i) { SpawnOn(executor, Worker(progress, count, &make)); }
  // `make` lives on this frame, which waits for every worker: no worker outlives it.
  co_await progress->all_ended.Wait(Deadline::Never());
}

}  // namespace forkd
