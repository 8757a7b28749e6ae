#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "base/status_macros.h"

namespace forkd {
namespace {

TEST(ErrorTest, CarriesReasonAndRetryDelay) {
  const absl::Status status = Error(absl::StatusCode::kResourceExhausted, Reason::kMemoryExhausted, "no room").RetryAfter(std::chrono::milliseconds(1500));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "MEMORY_EXHAUSTED");
  EXPECT_EQ(RetryAfterOf(status), std::chrono::milliseconds(1500));
}

TEST(ErrorTest, AnnotateKeepsTheDetails) {
  const absl::Status status = Annotate(InvalidField("n", "must be at least 1"), "create");
  EXPECT_EQ(status.message(), "create: n: must be at least 1");
  EXPECT_EQ(ReasonOf(status), "INVALID_FIELD");
}

TEST(ErrorTest, FullDiskIsResourceExhausted) {
  const absl::Status status = ErrnoError(ENOSPC, "write \"x\"");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "DISK_FULL");
}

TEST(ErrorTest, QuotedEscapesAndCuts) {
  EXPECT_EQ(Quoted("a\n\x01"), "\"a\\n\\x01\"");
  EXPECT_EQ(Quoted(std::string(100, 'x')), "\"" + std::string(80, 'x') + "…\"");
}

absl::Status Assigns(absl::StatusOr<int> from, int* to) {
  FORKD_ASSIGN_OR_RETURN(*to, from);
  return absl::OkStatus();
}

TEST(StatusMacrosTest, AssignOrReturnReturnsTheError) {
  int value = 0;
  EXPECT_TRUE(Assigns(7, &value).ok());
  EXPECT_EQ(value, 7);
  EXPECT_EQ(Assigns(absl::NotFoundError("x"), &value).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace forkd
