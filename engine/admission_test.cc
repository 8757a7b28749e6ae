#include "engine/admission.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "base/error.h"

namespace forkd::engine {
namespace {

TEST(AdmissionTest, RefusesWhatExceedsTheBudgetWithARetryDelay) {
  Admission admission(100, [] { return int64_t{100000}; });
  absl::StatusOr<MemoryReservation> first = admission.Reserve(60, "a");
  ASSERT_TRUE(first.ok());
  const absl::Status refused = admission.Reserve(41, "b").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "MEMORY_EXHAUSTED");
  EXPECT_TRUE(RetryAfterOf(refused).has_value());
  EXPECT_EQ(admission.reserved_mib(), 60);
  first->Release();
  EXPECT_TRUE(admission.Reserve(100, "c").ok());
  EXPECT_EQ(admission.reserved_mib(), 0) << "a reservation gives its memory back when it goes";
}

TEST(AdmissionTest, LeavesTheHostItsReserve) {
  Admission admission(100000, [] { return Admission::kHostReserveMib + 50; });
  EXPECT_TRUE(admission.Reserve(50, "a").ok());
  EXPECT_FALSE(admission.Reserve(51, "b").ok());
}

TEST(AdmissionTest, AReservationMayOutliveTheAdmission) {
  auto admission = std::make_unique<Admission>(10, [] { return int64_t{100000}; });
  MemoryReservation kept = *admission->Reserve(5, "a");
  admission.reset();
  kept.Release();
  EXPECT_EQ(kept.mib(), 0);
}

TEST(AdmissionTest, ALimitBoundsTheEstimate) {
  EXPECT_EQ(SandboxEstimateMib(512, 0), 40 + 64);
  EXPECT_EQ(SandboxEstimateMib(512, 64), 64);
  EXPECT_EQ(SandboxEstimateMib(64, 0), 40 + 16);
}

TEST(AdmissionTest, TheHostsMemoryIsReadable) {
  EXPECT_GT(HostTotalMib(), 0);
  EXPECT_GT(HostAvailableMib(), 0);
  EXPECT_GE(HostTotalMib(), HostAvailableMib());
}

}  // namespace
}  // namespace forkd::engine
