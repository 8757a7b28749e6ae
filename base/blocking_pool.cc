#include "base/blocking_pool.h"

#include <boost/asio/async_result.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace forkd {

struct BlockingPool::Impl {
  explicit Impl(int threads) : pool(static_cast<std::size_t>(threads)) {}
  boost::asio::thread_pool pool;
};

BlockingPool::BlockingPool(int threads) : impl_(std::make_unique<Impl>(threads)) {}

BlockingPool::~BlockingPool() { impl_->pool.join(); }

Task<void> BlockingPool::RunErased(absl::AnyInvocable<void()> work) {
  Executor home = co_await boost::asio::this_coro::executor;
  auto initiate = [this, home, &work](auto handler) {
    boost::asio::post(impl_->pool, [home, &work, guard = boost::asio::make_work_guard(home), handler = std::move(handler)]() mutable {
      work();
      boost::asio::post(home, std::move(handler));
    });
  };
  co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void()>(std::move(initiate), boost::asio::use_awaitable);
}

}  // namespace forkd
