// Named places where a crash or an error would hurt most. In production a fault point costs one atomic load and does nothing; tests install a
// handler that fails with a chosen error, or kills the process.
#ifndef FORKD_BASE_FAULT_POINT_H_
#define FORKD_BASE_FAULT_POINT_H_

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace forkd {

// OK, or the error that the test's handler wants this place to have met. Any thread. Names read `folder.operation.moment`.
absl::Status FaultPoint(absl::string_view name);

// Installs the handler for as long as the object lives. One at a time. The handler may be called on any thread, one call at a time.
class ScopedFaultHandlerForTest {
 public:
  explicit ScopedFaultHandlerForTest(absl::AnyInvocable<absl::Status(absl::string_view name)> handler);
  ~ScopedFaultHandlerForTest();
  ScopedFaultHandlerForTest(const ScopedFaultHandlerForTest&) = delete;
  ScopedFaultHandlerForTest& operator=(const ScopedFaultHandlerForTest&) = delete;
};

// For tests that run the whole daemon: if the environment has FORKD_TEST_CRASH_AT=<name>, the process kills itself (SIGKILL) at that point. Called
// once, by main().
void CrashAtFaultPointFromEnvironment();

}  // namespace forkd

#endif  // FORKD_BASE_FAULT_POINT_H_
