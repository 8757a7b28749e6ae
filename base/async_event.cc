#include "base/async_event.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <list>

namespace forkd {
namespace {

constexpr auto kNoThrow = boost::asio::as_tuple(boost::asio::use_awaitable);

}  // namespace

Task<void> SleepUntil(Deadline deadline) {
  boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, deadline.when());
  co_await timer.async_wait(kNoThrow);
}

struct AsyncEvent::State {
  explicit State(Executor e) : executor(std::move(e)) {}
  Executor executor;
  bool set = false;
  // One timer a waiter, on its coroutine frame; Set() cancels them.
  std::list<boost::asio::steady_timer*> waiters;
};

AsyncEvent::AsyncEvent(Executor executor) : state_(std::make_shared<State>(std::move(executor))) {}
AsyncEvent::~AsyncEvent() = default;

void AsyncEvent::Set() {
  state_->set = true;
  for (boost::asio::steady_timer* timer : state_->waiters) { timer->cancel(); }
}

void AsyncEvent::Reset() { state_->set = false; }
bool AsyncEvent::IsSet() const { return state_->set; }

Task<bool> AsyncEvent::Wait(Deadline deadline) { return WaitOn(state_, deadline); }

Task<bool> AsyncEvent::WaitOn(std::shared_ptr<State> state, Deadline deadline) {
  if (state->set) { co_return true; }
  boost::asio::steady_timer timer(state->executor, deadline.when());
  const auto place = state->waiters.insert(state->waiters.end(), &timer);
  co_await timer.async_wait(kNoThrow);
  state->waiters.erase(place);
  co_return state->set;
}

}  // namespace forkd
