#include "base/fault_point.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace forkd {
namespace {

using Handler = absl::AnyInvocable<absl::Status(absl::string_view)>;

std::atomic<bool> armed{false};

struct State {
  absl::Mutex mutex;
  Handler handler ABSL_GUARDED_BY(mutex);
};

State& GetState() {
  static State* const state = new State;  // never destroyed: threads may pass fault points during exit
  return *state;
}

void Install(Handler handler) {
  absl::MutexLock lock(&GetState().mutex);
  armed = static_cast<bool>(handler);
  GetState().handler = std::move(handler);
}

}  // namespace

absl::Status FaultPoint(absl::string_view name) {
  if (!armed.load(std::memory_order_relaxed)) { return absl::OkStatus(); }
  absl::MutexLock lock(&GetState().mutex);
  return GetState().handler ? GetState().handler(name) : absl::OkStatus();
}

ScopedFaultHandlerForTest::ScopedFaultHandlerForTest(absl::AnyInvocable<absl::Status(absl::string_view name)> handler) {
  Install(std::move(handler));
}

ScopedFaultHandlerForTest::~ScopedFaultHandlerForTest() { Install(nullptr); }

void CrashAtFaultPointFromEnvironment() {
  const char* const wanted = std::getenv("FORKD_TEST_CRASH_AT");
  if (wanted == nullptr || *wanted == '\0') { return; }
  Install([name = std::string(wanted)](absl::string_view here) {
    if (here == name) { ::kill(::getpid(), SIGKILL); }
    return absl::OkStatus();
  });
}

}  // namespace forkd
