// A point in time by which something must have happened; passed down, so that nested waits share one budget.
#ifndef FORKD_BASE_DEADLINE_H_
#define FORKD_BASE_DEADLINE_H_

#include <algorithm>
#include <chrono>

namespace forkd {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline At(Clock::time_point when) { return Deadline(when); }
  static Deadline In(Clock::duration from_now) {
    const Clock::time_point now = Clock::now();
    // Saturates: a caller's "for ever" must not wrap into the past.
    return Deadline(from_now > Clock::time_point::max() - now ? Clock::time_point::max() : now + from_now);
  }
  static Deadline Never() { return Deadline(Clock::time_point::max()); }

  Clock::time_point when() const { return when_; }
  bool IsNever() const { return when_ == Clock::time_point::max(); }
  bool Expired() const { return Clock::now() >= when_; }
  // Zero once expired.
  Clock::duration Remaining() const { return std::max(Clock::duration::zero(), when_ - Clock::now()); }
  // The earlier of this and `from_now`.
  Deadline Within(Clock::duration from_now) const { return Deadline(std::min(when_, In(from_now).when_)); }

 private:
  explicit Deadline(Clock::time_point when) : when_(when) {}
  Clock::time_point when_;
};

}  // namespace forkd

#endif  // FORKD_BASE_DEADLINE_H_
