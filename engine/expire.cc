// Lifetimes and idle limits. One loop sleeps until the next sandbox is due, however many there are.
#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

// When the clock is set, deadlines by the wall clock move against our timer: look at them at least this often.
constexpr std::int64_t kLongestSleepSecs = 60;

std::int64_t DueAt(const Sandbox& sandbox) {
  std::int64_t due = sandbox.view.row.expires_at_unix.value_or(std::numeric_limits<std::int64_t>::max());
  // A paused sandbox is not idle by its own doing, but it holds memory all the same: the limit counts.
  if (sandbox.view.row.idle_timeout_secs.has_value() && sandbox.active_calls == 0) {
    due = std::min(due, sandbox.view.last_used_at_unix + *sandbox.view.row.idle_timeout_secs);
  }
  return due;
}

}  // namespace

Task<void> Engine::ExpireLoop() {
  while (!shutting_down_) {
    expiry_changed_.Reset();
    const std::int64_t now = NowUnix();
    std::int64_t next = now + kLongestSleepSecs;
    std::vector<SandboxId> due;
    for (const auto& [id, sandbox] : sandboxes_) {
      if (sandbox->deleting) { continue; }
      const std::int64_t at = DueAt(*sandbox);
      if (at <= now) {
        due.push_back(id);
      } else {
        next = std::min(next, at);
      }
    }
    for (const SandboxId& id : due) {
      // A call may have begun since the list was made.
      const auto it = sandboxes_.find(id);
      if (it == sandboxes_.end() || DueAt(*it->second) > NowUnix()) { continue; }
      spdlog::info("expired sandbox={} {}", id.str(), it->second->view.row.expires_at_unix.value_or(next) <= now ? "lifetime" : "idle");
      if (const absl::Status deleted = co_await DeleteSandbox(id); !deleted.ok() && !absl::IsNotFound(deleted)) {
        spdlog::error("expired sandbox not deleted sandbox={} error=\"{}\"", id.str(), std::string(deleted.message()));
      }
    }
    if (due.empty()) { co_await expiry_changed_.Wait(Deadline::In(std::chrono::seconds(next - now))); }
  }
  expiry_ended_.Set();
}

}  // namespace forkd::engine
