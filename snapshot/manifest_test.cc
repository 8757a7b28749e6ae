#include "snapshot/manifest.h"

#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/str_replace.h"
#include "base/error.h"
#include "snapshot/testing/sample_manifest.h"

namespace forkd::snapshot {
namespace {

using google::protobuf::util::MessageDifferencer;

TEST(ManifestTest, ReadsBackWhatItWrote) {
  for (const Manifest& manifest : {RootForTest(), BranchForTest()}) {
    const absl::StatusOr<std::string> json = SerializeManifest(manifest);
    ASSERT_TRUE(json.ok()) << json.status();
    const absl::StatusOr<Manifest> read = ParseManifest(*json);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(MessageDifferencer::Equals(manifest, *read)) << *json;
  }
}

TEST(ManifestTest, IsJsonForPeople) {
  const std::string json = *SerializeManifest(RootForTest());
  EXPECT_NE(json.find("\"format_version\": 1"), std::string::npos) << json;
  EXPECT_NE(json.find("\"kind\": \"ROOT\""), std::string::npos) << json;
}

TEST(ManifestTest, AnotherVersionIsIncompatibleWhateverElseItHas) {
  const std::string json = absl::StrReplaceAll(*SerializeManifest(RootForTest()), {{"\"format_version\": 1", "\"format_version\": 2, \"novelty\": {}"}});
  const absl::Status status = ParseManifest(json).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "SNAPSHOT_INCOMPATIBLE");
  EXPECT_NE(status.message().find("format_version"), absl::string_view::npos);
}

TEST(ManifestTest, UnknownFieldIsRefused) {
  const std::string json = absl::StrReplaceAll(*SerializeManifest(RootForTest()), {{"\"format_version\": 1", "\"format_version\": 1, \"novelty\": 3"}});
  const absl::Status status = ParseManifest(json).status();
  EXPECT_EQ(ReasonOf(status), "SNAPSHOT_DAMAGED");
  EXPECT_NE(status.message().find("novelty"), absl::string_view::npos) << status;
}

TEST(ManifestTest, WhatIsNoManifestIsDamaged) {
  for (const std::string& json : {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string(1000, '['), std::string("\xff\xfe"),
                                  std::string(kMaxManifestBytes + 1, ' ')}) {
    const absl::Status status = ParseManifest(json).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("manifest.json"), absl::string_view::npos) << status;
  }
}

struct Case {
  const char* field;  // what the message must name
  std::function<void(Manifest&)> spoil;
};

TEST(ManifestTest, EveryFieldOfARootIsChecked) {
  const Case cases[] = {
      {"format_version", [](Manifest& m) { m.set_format_version(0); }},
      {"tag", [](Manifest& m) { m.set_tag("../up"); }},
      {"root_tag", [](Manifest& m) { m.set_root_tag("other"); }},
      {"root_tag", [](Manifest& m) { m.set_root_tag(""); }},
      {"kind", [](Manifest& m) { m.set_kind(KIND_UNSPECIFIED); }},
      {"parent_tag", [](Manifest& m) { m.set_parent_tag("p"); }},
      {"depth", [](Manifest& m) { m.set_depth(1); }},
      {"root_memory_digest", [](Manifest& m) { m.set_root_memory_digest(std::string(64, 'a')); }},
      {"branched_from", [](Manifest& m) { m.set_branched_from("sb-6a60c2f1-0001"); }},
      {"pages", [](Manifest& m) { m.mutable_pages()->set_page_count(1); }},
      {"machine", [](Manifest& m) { m.clear_machine(); }},
      {"machine.vmm", [](Manifest& m) { m.mutable_machine()->erase("vmm"); }},
      {"machine", [](Manifest& m) { (*m.mutable_machine())["x"] = std::string(20000, 'x'); }},
      {"shape.vcpus", [](Manifest& m) { m.mutable_shape()->set_vcpus(0); }},
      {"shape.memory_mib", [](Manifest& m) { m.mutable_shape()->set_memory_mib(-1); }},
      {"memory_bytes", [](Manifest& m) { m.set_memory_bytes(0); }},
      {"memory_bytes", [](Manifest& m) { m.set_memory_bytes(4097); }},
      {"kernel.path", [](Manifest& m) { m.mutable_kernel()->set_path("relative"); }},
      {"rootfs.sha256", [](Manifest& m) { m.mutable_rootfs()->set_sha256("zz"); }},
      {"sync_token", [](Manifest& m) { m.set_sync_token("abc"); }},
      {"labels", [](Manifest& m) { (*m.mutable_labels())[""] = "x"; }},
      {"labels", [](Manifest& m) { for (int i = 0; i < 70; ++i) { (*m.mutable_labels())[std::to_string(i)] = "x"; } }},
      {"captured[2]", [](Manifest& m) { m.add_captured(std::string(300, 'x')); }},
      {"pause_ms", [](Manifest& m) { m.set_pause_ms(-1); }},
      {"created_at_unix", [](Manifest& m) { m.set_created_at_unix(-1); }},
      {"files", [](Manifest& m) { m.clear_files(); }},
      {"files[0].name", [](Manifest& m) { m.mutable_files(0)->set_name("../../etc/passwd"); }},
      {"files[1].name", [](Manifest& m) { *m.mutable_files(1) = m.files(0); }},
      {"files[1].name", [](Manifest& m) { m.mutable_files(1)->set_name(kPagesName); }},
      {"files[0].scheme", [](Manifest& m) { m.mutable_files(0)->set_scheme("crc32"); }},
      {"files[0].digest", [](Manifest& m) { m.mutable_files(0)->set_digest(std::string(64, 'D')); }},
      {"files[0].size_bytes", [](Manifest& m) { m.mutable_files(0)->set_size_bytes(-1); }},
      {"files[1].size_bytes", [](Manifest& m) { m.mutable_files(1)->set_size_bytes(4096); }},
  };
  for (const Case& c : cases) {
    Manifest m = RootForTest();
    c.spoil(m);
    const absl::Status status = ValidateManifest(m);
    EXPECT_EQ(ReasonOf(status), "INVALID_FIELD") << c.field;
    EXPECT_NE(status.message().find(c.field), absl::string_view::npos) << c.field << ": " << status;
    EXPECT_FALSE(SerializeManifest(m).ok()) << c.field;
  }
}

TEST(ManifestTest, EveryFieldOfABranchIsChecked) {
  const Case cases[] = {
      {"parent_tag", [](Manifest& m) { m.set_parent_tag(""); }},
      {"parent_tag", [](Manifest& m) { m.set_parent_tag(m.tag()); }},
      {"root_tag", [](Manifest& m) { m.set_root_tag(m.tag()); }},
      {"root_memory_digest", [](Manifest& m) { m.set_root_memory_digest(""); }},
      {"branched_from", [](Manifest& m) { m.set_branched_from("nobody"); }},
      {"depth", [](Manifest& m) { m.set_depth(0); }},
      {"pages", [](Manifest& m) { m.clear_pages(); }},
      {"pages.page_count", [](Manifest& m) { m.mutable_pages()->set_page_count(65537); }},
      {"pages.zero_page_count", [](Manifest& m) { m.mutable_pages()->set_zero_page_count(5); }},
      {"files[1].name", [](Manifest& m) { m.mutable_files(1)->set_name(kMemoryName); }},
  };
  for (const Case& c : cases) {
    Manifest m = BranchForTest();
    c.spoil(m);
    const absl::Status status = ValidateManifest(m);
    EXPECT_EQ(ReasonOf(status), "INVALID_FIELD") << c.field;
    EXPECT_NE(status.message().find(c.field), absl::string_view::npos) << c.field << ": " << status;
  }
}

TEST(ManifestTest, TextThatIsNotUtf8IsNotWritten) {
  Manifest m = RootForTest();
  (*m.mutable_labels())["k"] = "\xff\xff";
  EXPECT_EQ(SerializeManifest(m).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace forkd::snapshot
