#include "vmm/launcher/uid_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd::vmm {

struct UidLease::State {
  explicit State(UidRange r) : range(r) {}
  const UidRange range;
  absl::Mutex mutex;
  uid_t next ABSL_GUARDED_BY(mutex) = 0;
  // By count, because an adopted process's uid may be met again before its first lease is gone.
  std::multiset<uid_t> in_use ABSL_GUARDED_BY(mutex);
};

UidLease::UidLease(UidLease&& other) noexcept : state_(std::move(other.state_)), uid_(std::exchange(other.uid_, 0)) {}

UidLease& UidLease::operator=(UidLease&& other) noexcept {
  if (this != &other) {
    Release();
    state_ = std::move(other.state_);
    uid_ = std::exchange(other.uid_, 0);
  }
  return *this;
}

void UidLease::Release() {
  if (state_ == nullptr) { return; }
  {
    absl::MutexLock lock(&state_->mutex);
    if (const auto it = state_->in_use.find(uid_); it != state_->in_use.end()) { state_->in_use.erase(it); }
  }
  state_ = nullptr;
}

UidPool::UidPool(UidRange range) : state_(std::make_shared<UidLease::State>(range)) {}
UidPool::~UidPool() = default;

absl::StatusOr<UidLease> UidPool::Lease() {
  absl::MutexLock lock(&state_->mutex);
  for (uid_t tried = 0; tried < state_->range.count; ++tried) {
    const uid_t uid = state_->range.first + state_->next;
    state_->next = (state_->next + 1) % state_->range.count;
    if (state_->in_use.count(uid) == 0) {
      state_->in_use.insert(uid);
      return UidLease(state_, uid);
    }
  }
  return Error(absl::StatusCode::kResourceExhausted, Reason::kLimitReached,
               absl::StrCat("all ", state_->range.count, " uids for VMMs from ", state_->range.first, " on are in use"));
}

UidLease UidPool::Adopt(uid_t uid) {
  if (uid < state_->range.first || uid - state_->range.first >= state_->range.count) { return UidLease(); }
  absl::MutexLock lock(&state_->mutex);
  state_->in_use.insert(uid);
  return UidLease(state_, uid);
}

}  // namespace forkd::vmm
