// The reverse of what has been done so far. Each step adds its reverse before the next begins; Commit() drops them; otherwise the destructor
// runs them, last first. Reverses must not block long and must not fail: what can fail belongs to the reaper or to reconciliation.
#ifndef FORKD_BASE_UNDO_H_
#define FORKD_BASE_UNDO_H_

#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"

namespace forkd {

class Undo {
 public:
  Undo() = default;
  Undo(const Undo&) = delete;
  Undo& operator=(const Undo&) = delete;
  ~Undo() { Run(); }

  void Add(absl::AnyInvocable<void()> reverse) { reverses_.push_back(std::move(reverse)); }
  void Commit() { reverses_.clear(); }
  void Run() {
    while (!reverses_.empty()) {
      absl::AnyInvocable<void()> reverse = std::move(reverses_.back());
      reverses_.pop_back();
      reverse();
    }
  }

 private:
  std::vector<absl::AnyInvocable<void()>> reverses_;
};

}  // namespace forkd

#endif  // FORKD_BASE_UNDO_H_
