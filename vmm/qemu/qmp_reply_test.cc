#include "vmm/qemu/qmp_reply.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace forkd::vmm {
namespace {

TEST(QmpMessage, Greeting) {
  const auto message = ParseQmpMessage(R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}})");
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(std::get<QmpGreeting>(*message).major, 7);
  EXPECT_EQ(std::get<QmpGreeting>(*message).minor, 2);
}

TEST(QmpMessage, ReturnErrorAndEvent) {
  const auto value = ParseQmpMessage(R"({"return": {"status": "paused"}, "id": "forkd-1-2"})");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(std::get<QmpReturn>(*value).id, "forkd-1-2");
  EXPECT_EQ(std::get<QmpReturn>(*value).value["status"], "paused");
  const auto error = ParseQmpMessage(R"({"id": "x", "error": {"class": "GenericError", "desc": "no"}})");
  ASSERT_TRUE(error.ok()) << error.status();
  EXPECT_EQ(std::get<QmpFailure>(*error).description, "no");
  const auto event = ParseQmpMessage(R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})");
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(std::get<QmpEvent>(*event).name, "STOP");
  EXPECT_TRUE(std::get<QmpEvent>(*event).data.is_object());
}

TEST(QmpMessage, EverythingElseIsAProtocolError) {
  for (const absl::string_view line :
       {"", "x", "{", "[]", "1", "null", "{}", R"({"QMP": 1})", R"({"QMP": {}})", R"({"QMP": {"version": {"qemu": {"major": "7", "minor": 2}}}})",
        R"({"QMP": {"version": {"qemu": {"major": -7, "minor": 2}}}})", R"({"return": {}})", R"({"return": {}, "id": 1})",
        R"({"return": {}, "error": {"class": "a", "desc": "b"}, "id": "1"})", R"({"error": {}, "id": "1"})", R"({"error": 1, "id": "1"})",
        R"({"error": {"class": "GenericError", "desc": "JSON parse error"}})", R"({"event": 1})", R"({"event": "STOP", "data": 7})", R"({"return": {}} x)",
        "{\"return\": \"\xff\xfe\", \"id\": \"1\"}"}) {
    const auto message = ParseQmpMessage(line);
    EXPECT_FALSE(message.ok()) << line;
    EXPECT_EQ(message.status().code(), absl::StatusCode::kInternal) << line;
    EXPECT_EQ(ReasonOf(message.status()), "VMM_PROTOCOL") << line;
  }
}

TEST(QmpLines, AnySplitOfTheBytesGivesTheSameLines) {
  const std::string bytes = "one\r\ntwo\n\r\n\nthree\r\nunfinished";
  const std::vector<std::string> expected = {"one", "two", "three"};
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    QmpLines lines;
    std::vector<std::string> got;
    for (std::size_t at = 0; at < bytes.size(); at += step) {
      ASSERT_TRUE(lines.Append(absl::string_view(bytes).substr(at, step)).ok());
      while (auto line = lines.Next()) { got.push_back(*line); }
    }
    EXPECT_EQ(got, expected) << "in steps of " << step;
  }
}

TEST(QmpLines, ALineMayBeAsLongAsTheLimitAndNoLonger) {
  QmpLines fits;
  ASSERT_TRUE(fits.Append(std::string(kMaxQmpLineBytes, 'x')).ok());
  ASSERT_TRUE(fits.Append("\n").ok());
  EXPECT_EQ(fits.Next()->size(), kMaxQmpLineBytes);
  QmpLines too_long;
  const absl::Status refused = too_long.Append(std::string(kMaxQmpLineBytes + 1, 'x'));
  EXPECT_EQ(ReasonOf(refused), "VMM_PROTOCOL");
  EXPECT_LT(refused.message().size(), 300u) << "the message does not carry the flood";
}

TEST(QmpMessage, DeepNestingIsNoStackOverflow) {
  std::string deep = R"({"return": )";
  for (int i = 0; i < 100000; ++i) { deep += '['; }
  for (int i = 0; i < 100000; ++i) { deep += ']'; }
  deep += R"(, "id": "1"})";
  EXPECT_EQ(ReasonOf(ParseQmpMessage(deep).status()), "VMM_PROTOCOL");
  EXPECT_TRUE(ParseQmpMessage(R"({"return": "[[[[ \" {{{{", "id": "1"})").ok()) << "brackets in strings do not count";
}

}  // namespace
}  // namespace forkd::vmm
