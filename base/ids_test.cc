#include "base/ids.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/container/flat_hash_set.h"
#include "base/error.h"

namespace forkd {
namespace {

TEST(SnapshotTagTest, TakesTheContractsAlphabet) {
  for (const std::string& text : {std::string("a"), std::string("py312"), std::string("A_b-9"), std::string("-"), std::string(64, 'x')}) {
    const absl::StatusOr<SnapshotTag> tag = SnapshotTag::Parse(text);
    ASSERT_TRUE(tag.ok()) << text;
    EXPECT_EQ(tag->str(), text);
  }
}

TEST(SnapshotTagTest, RefusesAllElseWithTheContractsSentence) {
  for (const std::string& text : {std::string(), std::string(65, 'x'), std::string("."), std::string(".."), std::string("a/b"), std::string("a.b"),
                                  std::string("a b"), std::string("a\0b", 3), std::string("a\n"), std::string("\xc3\xbc"), std::string("~")}) {
    const absl::Status status = SnapshotTag::Parse(text, "snapshot_tag").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ReasonOf(status), "INVALID_FIELD");
    EXPECT_EQ(status.message().substr(0, 53), "tag must be 1-64 chars, ASCII alnum or dash/underscor") << status;
  }
}

TEST(SandboxIdTest, TakesWhatTheGeneratorMakes) {
  SandboxIdGenerator generator(3);
  const SandboxId id = generator.Next(0x6a60c2f1);
  EXPECT_EQ(id.str(), "sb-6a60c2f1-0003");
  EXPECT_EQ(*SandboxId::Parse(id.str()), id);
  SandboxIdGenerator late(0xffff);
  EXPECT_EQ(late.Next(0x6a60c2f1).str(), "sb-6a60c2f1-ffff");
  EXPECT_EQ(late.Next(0x6a60c2f1).str(), "sb-6a60c2f1-10000");
  EXPECT_TRUE(SandboxId::Parse("sb-6a60c2f1-10000").ok());
}

TEST(SandboxIdTest, RefusesAllElse) {
  for (const char* text : {"", "sb-", "sb--0003", "sb-6a60c2f1", "sb-6a60c2f1-", "sb-6a60c2f1-003", "sb-6A60c2f1-0003", "sb-6a60c2f1-000g", "sb-6a60c2f1-0003-1",
                           "xx-6a60c2f1-0003", "sb-6a60c2f1-0003/..", "sb-11112222333344445-0003", "sb-6a60c2f1-000000001"}) {
    EXPECT_EQ(ReasonOf(SandboxId::Parse(text).status()), "INVALID_FIELD") << text;
  }
}

TEST(SandboxIdTest, GeneratorDoesNotRepeatItself) {
  SandboxIdGenerator generator;
  absl::flat_hash_set<SandboxId> seen;
  for (int i = 0; i < 10000; ++i) { EXPECT_TRUE(seen.insert(generator.Next(1785000000)).second); }
}

TEST(DefaultBranchTagTest, NamesSourceAndTimeAndIsATag) {
  const SandboxId source = *SandboxId::Parse("sb-6a60c2f1-0003");
  std::set<SnapshotTag> tags;
  for (int i = 0; i < 100; ++i) {
    const SnapshotTag tag = DefaultBranchTag(source, 1785000000);
    EXPECT_EQ(tag.str().substr(0, 35), "branch-sb-6a60c2f1-0003-1785000000-") << tag.str();
    EXPECT_EQ(tag.str().size(), 39u);
    EXPECT_TRUE(SnapshotTag::Parse(tag.str()).ok());
    tags.insert(tag);
  }
  EXPECT_GT(tags.size(), 50u);
  // The longest id there can be still makes a tag.
  const SandboxId longest = *SandboxId::Parse("sb-1111222233334444-00000001");
  EXPECT_TRUE(SnapshotTag::Parse(DefaultBranchTag(longest, INT64_MAX).str()).ok());
}

}  // namespace
}  // namespace forkd
