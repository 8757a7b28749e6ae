#include "server/validate.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "proto/forkd/v1/sandbox.pb.h"
#include "proto/forkd/v1/snapshot.pb.h"

namespace forkd::server {
namespace {

v1::ExecRequest GoodExec() {
  v1::ExecRequest request;
  request.set_id("sb-65f0a1b2-0001");
  request.add_args("true");
  return request;
}

std::string RefusalOf(const google::protobuf::Message& request) {
  const absl::Status status = ValidateRequest(request);
  EXPECT_EQ(status.ok() ? "" : ReasonOf(status), status.ok() ? "" : "INVALID_FIELD");
  return std::string(status.message());
}

TEST(ValidateTest, TakesAGoodRequest) { EXPECT_EQ(RefusalOf(GoodExec()), ""); }

TEST(ValidateTest, NamesTheMissingField) {
  v1::ExecRequest request;
  EXPECT_EQ(RefusalOf(request), "id: is required");
  request.set_id("sb-65f0a1b2-0001");
  EXPECT_EQ(RefusalOf(request), "args: args must contain at least one element");
}

TEST(ValidateTest, RefusesANulByteInTextAndTakesItInBytes) {
  v1::ExecRequest request = GoodExec();
  request.add_args(std::string("a\0b", 3));
  EXPECT_EQ(RefusalOf(request), "args[1]: holds a NUL byte");
  request = GoodExec();
  request.set_stdin(std::string("a\0b", 3));
  EXPECT_EQ(RefusalOf(request), "");
}

TEST(ValidateTest, RefusesNumbersOutOfRangeEvenWhereTheyAreZero) {
  v1::CreateSandboxesRequest request;
  request.set_snapshot_tag("t");
  EXPECT_EQ(RefusalOf(request), "") << "an absent n is the default";
  request.set_n(0);
  EXPECT_EQ(RefusalOf(request), "n: n must be ≥ 1; it is 0");
  request.set_n(1001);
  EXPECT_EQ(RefusalOf(request), "n: n must be ≤ 1000; it is 1001");
}

TEST(ValidateTest, TagsKeepTheContractsWords) {
  v1::CreateSnapshotRequest request;
  request.set_tag("../etc");
  EXPECT_NE(RefusalOf(request).find("tag must be 1-64 chars, ASCII alnum or dash/underscore"), std::string::npos);
  request.set_tag("");
  EXPECT_NE(RefusalOf(request).find("tag must be 1-64 chars, ASCII alnum or dash/underscore"), std::string::npos);
}

TEST(ValidateTest, BoundsMapsAndTheirText) {
  v1::ExecRequest request = GoodExec();
  (*request.mutable_env())["A"] = std::string(131073, 'x');
  EXPECT_EQ(RefusalOf(request), "env.value: has 131073 bytes; at most 131072");
  v1::CreateSandboxesRequest create;
  create.set_snapshot_tag("t");
  for (int i = 0; i < 65; ++i) { (*create.mutable_labels())["k" + std::to_string(i)] = "v"; }
  EXPECT_EQ(RefusalOf(create), "labels: has 65 elements; at most 64");
}

TEST(ValidateTest, NamesNestedFieldsByPath) {
  v1::ExecStreamRequest request;
  request.mutable_start()->set_id("sb-65f0a1b2-0001");
  EXPECT_EQ(RefusalOf(request), "start.args: args must contain at least one element");
}

}  // namespace
}  // namespace forkd::server
