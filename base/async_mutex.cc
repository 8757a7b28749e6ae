#include "base/async_mutex.h"

#include <utility>

namespace forkd {

AsyncMutex::AsyncMutex(Executor executor) : state_(std::make_shared<State>(std::move(executor))) {}

bool AsyncMutex::IsHeld() const { return state_->held; }

AsyncMutex::Guard& AsyncMutex::Guard::operator=(Guard&& other) noexcept {
  if (this != &other) {
    Release();
    state_ = std::move(other.state_);
  }
  return *this;
}

void AsyncMutex::Guard::Release() {
  if (state_ == nullptr) { return; }
  if (state_->waiters.empty()) {
    state_->held = false;
  } else {
    // Handed over, never freed in between: a newcomer cannot overtake.
    AsyncEvent* next = state_->waiters.front();
    state_->waiters.pop_front();
    next->Set();
  }
  state_ = nullptr;
}

Task<std::optional<AsyncMutex::Guard>> AsyncMutex::Acquire(Deadline deadline) { return AcquireOn(state_, deadline); }

Task<std::optional<AsyncMutex::Guard>> AsyncMutex::AcquireOn(std::shared_ptr<State> state, Deadline deadline) {
  if (!state->held) {
    state->held = true;
    co_return Guard(std::move(state));
  }
  AsyncEvent turn(state->executor);
  const auto place = state->waiters.insert(state->waiters.end(), &turn);
  const bool got = co_await turn.Wait(deadline);
  if (!got) {
    state->waiters.erase(place);
    co_return std::nullopt;
  }
  co_return Guard(std::move(state));
}

}  // namespace forkd
