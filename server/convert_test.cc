#include "server/convert.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace forkd::server {
namespace {

TEST(ToUtf8Test, KeepsWhatIsWellFormedAndReplacesTheRest) {
  bool changed = true;
  EXPECT_EQ(ToUtf8("grün €😀", &changed), "grün €😀");
  EXPECT_FALSE(changed);
  EXPECT_EQ(ToUtf8("a\xff" "b", &changed), "a\xEF\xBF\xBD" "b");
  EXPECT_TRUE(changed);
  // Overlong, surrogate, beyond U+10FFFF, cut short: each byte is replaced by itself.
  EXPECT_EQ(ToUtf8("\xc0\xaf", &changed), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ToUtf8("\xed\xa0\x80", &changed), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ToUtf8("\xf4\x90\x80\x80", &changed), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ToUtf8("\xe2\x82", &changed), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(CheckGuestPathTest, TakesAbsolutePathsAlone) {
  EXPECT_TRUE(CheckGuestPath("/a/b..c/.d", "path").ok());
  for (const char* bad : {"", "a", "./a", "/a/../b", "/..", "../a"}) {
    const absl::Status status = CheckGuestPath(bad, "path");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_FALSE(CheckGuestPath("/" + std::string(256, 'x'), "path").ok());
}

v1::BranchSandboxRequest Branch() {
  v1::BranchSandboxRequest request;
  request.set_id("sb-65f0a1b2-0001");
  return request;
}

TEST(BranchSpecTest, ABranchWithoutATagGetsOneThatNamesItsSource) {
  const auto spec = ToSpec(Branch(), "rq");
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->tag.str().rfind("branch-sb-65f0a1b2-0001-", 0), 0u);
}

TEST(BranchSpecTest, TheContractsContradictionsAreRefused) {
  v1::BranchSandboxRequest request = Branch();
  request.set_mode(v1::BRANCH_MODE_FULL);
  request.set_diff(true);
  EXPECT_EQ(ToSpec(request, "rq").status().code(), absl::StatusCode::kInvalidArgument);
  request = Branch();
  request.set_diff(true);
  request.set_live(true);
  EXPECT_EQ(ToSpec(request, "rq").status().code(), absl::StatusCode::kInvalidArgument);
  request = Branch();
  request.set_wait(false);
  EXPECT_EQ(ToSpec(request, "rq").status().code(), absl::StatusCode::kInvalidArgument);
  request.set_live(true);
  EXPECT_TRUE(ToSpec(request, "rq").ok());
}

TEST(SnapshotSpecTest, TakesEitherAnImageOrHostFiles) {
  v1::CreateSnapshotRequest request;
  request.set_tag("t");
  EXPECT_FALSE(ToSpec(request, "rq").ok());
  request.set_kernel("/k");
  EXPECT_FALSE(ToSpec(request, "rq").ok()) << "a kernel without a rootfs";
  request.set_rootfs("/r");
  EXPECT_TRUE(ToSpec(request, "rq").ok());
  request.set_image("base");
  EXPECT_FALSE(ToSpec(request, "rq").ok()) << "both";
}

TEST(LabelsTest, OddKeysAreRefused) {
  v1::CreateSandboxesRequest request;
  request.set_snapshot_tag("t");
  (*request.mutable_labels())["team/a.b_c-d"] = "x y";
  EXPECT_TRUE(ToSpec(request, "rq").ok());
  (*request.mutable_labels())["a b"] = "";
  EXPECT_FALSE(ToSpec(request, "rq").ok());
}

TEST(ExecTest, VariablesWithoutAProperNameAreRefused) {
  v1::ExecRequest request;
  request.add_args("env");
  (*request.mutable_env())["A=B"] = "c";
  EXPECT_EQ(ToAgentExec(request, "").status().code(), absl::StatusCode::kInvalidArgument);
  request.clear_env();
  (*request.mutable_env())["A"] = "b=c";
  const auto start = ToAgentExec(request, "");
  ASSERT_TRUE(start.ok());
  EXPECT_EQ(start->env(0), "A=b=c");
}

TEST(ExecTest, AProgramThatCouldNotStartIsNeverASuccess) {
  agent::v1::ExecEnd end;
  end.mutable_exec_error()->set_reason("NOT_FOUND");
  end.mutable_exec_error()->set_message("no such program");
  v1::ExecResponse response;
  FillExecEnd(end, &response);
  EXPECT_EQ(response.exit_code(), 127);
  EXPECT_EQ(response.exec_error().reason(), "NOT_FOUND");
  v1::ExecResponse silent;
  FillExecEnd(agent::v1::ExecEnd(), &silent);
  EXPECT_NE(silent.exit_code(), 0) << "an agent that says nothing";
  EXPECT_TRUE(silent.has_error());
}

TEST(ExecTest, ASignalIsANegativeCode) {
  agent::v1::ExecEnd end;
  end.set_signal(9);
  v1::ExecExit exit;
  FillExecEnd(end, &exit);
  EXPECT_EQ(exit.exit_code(), -9);
  EXPECT_EQ(exit.signal(), 9);
}

}  // namespace
}  // namespace forkd::server
