#include "engine/standby_pool.h"

#include <algorithm>
#include <utility>

#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kRetryAfterFailure{10};
// When no event comes: demand ages, and levels follow.
constexpr std::chrono::seconds kLook{30};

Task<void> DiscardAndCount(StandbyPool::Discard discard, std::shared_ptr<StandbyChild> child, int* left, AsyncEvent* none_left) {
  co_await discard(std::move(child));
  if (--*left == 0) { none_left->Set(); }
}

}  // namespace

StandbyPool::StandbyPool(Runtime* runtime, StandbyOptions options, Make make, Discard discard)
    : runtime_(runtime),
      options_(options),
      make_(std::move(make)),
      discard_(std::move(discard)),
      wake_(runtime->executor()),
      ended_(runtime->executor()),
      all_discarded_(runtime->executor()) {}

StandbyPool::Quiet::~Quiet() {
  if (pool_ != nullptr && --pool_->quiet_ == 0) { pool_->wake_.Set(); }
}

int StandbyPool::TargetOf(const Shelf& shelf) const {
  if (shelf.target.has_value()) { return *shelf.target; }
  if (options_.fixed_target.has_value()) { return *options_.fixed_target; }
  const Clock::time_point oldest = Clock::now() - options_.demand_window;
  int most = 0;
  for (const auto& [when, n] : shelf.demand) {
    if (when >= oldest) { most = std::max(most, n); }
  }
  return std::min(most, options_.max_automatic);
}

void StandbyPool::DiscardSoon(std::unique_ptr<StandbyChild> child) {
  // Its memory is free from now on as far as admission is concerned; the process takes a moment to end.
  child->reservation.Release();
  ++discarding_;
  all_discarded_.Reset();
  runtime_->Spawn(DiscardAndCount(discard_, std::shared_ptr<StandbyChild>(std::move(child)), &discarding_, &all_discarded_));
}

void StandbyPool::DropDead(Shelf& shelf) {
  for (auto it = shelf.ready.begin(); it != shelf.ready.end();) {
    if ((*it)->dead || ((*it)->agent != nullptr && (*it)->agent->closed())) {
      DiscardSoon(std::move(*it));
      it = shelf.ready.erase(it);
    } else {
      ++it;
    }
  }
}

std::vector<std::unique_ptr<StandbyChild>> StandbyPool::Claim(const SnapshotTag& tag, int n, const std::shared_ptr<const ResidentSnapshot>& origin) {
  Shelf& shelf = shelves_[tag];
  DropDead(shelf);
  std::vector<std::unique_ptr<StandbyChild>> claimed;
  while (static_cast<int>(claimed.size()) < n && !shelf.ready.empty()) {
    std::unique_ptr<StandbyChild> child = std::move(shelf.ready.front());
    shelf.ready.pop_front();
    if (child->origin == origin) {
      claimed.push_back(std::move(child));
    } else {
      DiscardSoon(std::move(child));  // Of an earlier snapshot with this tag.
    }
  }
  shelf.hits += static_cast<std::int64_t>(claimed.size());
  shelf.misses += n - static_cast<std::int64_t>(claimed.size());
  const Clock::time_point now = Clock::now();
  while (!shelf.demand.empty() && shelf.demand.front().first < now - options_.demand_window) { shelf.demand.pop_front(); }
  // A run of equal requests is one entry: the list stays short however busy the snapshot is.
  if (!shelf.demand.empty() && shelf.demand.back().second == n) { shelf.demand.pop_back(); }
  shelf.demand.emplace_back(now, n);
  wake_.Set();
  return claimed;
}

void StandbyPool::SetTarget(const SnapshotTag& tag, std::optional<int> target) {
  shelves_[tag].target = target;
  wake_.Set();
}

StandbyLevels StandbyPool::LevelsOf(const SnapshotTag& tag) const {
  StandbyLevels levels;
  if (const auto it = shelves_.find(tag); it != shelves_.end()) {
    levels.target = TargetOf(it->second);
    levels.ready = static_cast<int>(it->second.ready.size());
    levels.hits = it->second.hits;
    levels.misses = it->second.misses;
  } else if (options_.fixed_target.has_value()) {
    levels.target = *options_.fixed_target;
  }
  return levels;
}

bool StandbyPool::EvictOne() {
  // The least wanted: of the shelf whose last fork is the longest ago.
  Shelf* victim = nullptr;
  Clock::time_point oldest = Clock::time_point::max();
  for (auto& [tag, shelf] : shelves_) {
    if (shelf.ready.empty()) { continue; }
    const Clock::time_point last = shelf.demand.empty() ? Clock::time_point::min() : shelf.demand.back().first;
    if (victim == nullptr || last < oldest) {
      victim = &shelf;
      oldest = last;
    }
  }
  if (victim == nullptr) { return false; }
  victim->not_before = Clock::now() + kRetryAfterFailure;
  DiscardSoon(std::move(victim->ready.back()));
  victim->ready.pop_back();
  return true;
}

void StandbyPool::Forget(const SnapshotTag& tag) {
  const auto it = shelves_.find(tag);
  if (it == shelves_.end()) { return; }
  for (std::unique_ptr<StandbyChild>& child : it->second.ready) { DiscardSoon(std::move(child)); }
  shelves_.erase(it);
}

Task<void> StandbyPool::ShutDown() {
  stopping_ = true;
  wake_.Set();
  co_await ended_.Wait(Deadline::In(std::chrono::seconds(60)));
  while (!shelves_.empty()) { Forget(shelves_.begin()->first); }
  if (discarding_ > 0) { co_await all_discarded_.Wait(Deadline::In(std::chrono::seconds(30))); }
}

Task<void> StandbyPool::RefillLoop() {
  while (!stopping_) {
    wake_.Reset();
    std::optional<SnapshotTag> wanted;
    const Clock::time_point now = Clock::now();
    if (quiet_ == 0) {
      for (auto& [tag, shelf] : shelves_) {
        DropDead(shelf);
        const int target = TargetOf(shelf);
        while (static_cast<int>(shelf.ready.size()) > target) {
          DiscardSoon(std::move(shelf.ready.back()));
          shelf.ready.pop_back();
        }
        if (static_cast<int>(shelf.ready.size()) < target && shelf.not_before <= now && !wanted.has_value()) { wanted = tag; }
      }
    }
    if (!wanted.has_value()) {
      co_await wake_.Wait(Deadline::In(kLook));
      continue;
    }
    absl::StatusOr<std::unique_ptr<StandbyChild>> child = co_await make_(*wanted);
    const auto it = shelves_.find(*wanted);
    if (!child.ok()) {
      spdlog::debug("no standby child snapshot={} error=\"{}\"", wanted->str(), std::string(child.status().message()));
      if (it != shelves_.end()) { it->second.not_before = Clock::now() + kRetryAfterFailure; }
    } else if (it == shelves_.end() || stopping_) {
      DiscardSoon(*std::move(child));
    } else {
      it->second.ready.push_back(*std::move(child));
    }
  }
  ended_.Set();
}

}  // namespace forkd::engine
