// Bytes recorded between containerd's own Go client (github.com/containerd/ttrpc, v1.2.10) and forkd-agent: an independent witness that what we
// speak is ttrpc.
#include <gtest/gtest.h>

#include "guest/ttrpc/frame.h"
#include "guest/ttrpc/ttrpc.pb.h"

namespace forkd::ttrpc {
namespace {

std::string Bytes(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) { bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16))); }
  return bytes;
}

Frame ParseOne(const std::string& bytes) {
  FrameParser parser;
  std::span<const char> in(bytes);
  EXPECT_EQ(parser.Feed(&in), FrameParser::Result::kFrame);
  EXPECT_TRUE(in.empty());
  return parser.frame();
}

struct GoldenRequest {
  const char* hex;
  uint32_t stream_id;
  uint8_t flags;
  const char* method;
};

TEST(GoldenTest, ContainerdsRequestsAreUnderstoodAndEncodedTheSame) {
  for (const GoldenRequest& golden : {
           GoldenRequest{"000000230000000101000a1b666f726b642e6167656e742e76312e4167656e7453657276696365120450696e67", 1, 0, "Ping"},
           GoldenRequest{"000000270000000501000a1b666f726b642e6167656e742e76312e4167656e745365727669636512085374617446696c65", 5, 0, "StatFile"},
           GoldenRequest{"000000230000000701020a1b666f726b642e6167656e742e76312e4167656e7453657276696365120445786563", 7, kFlagRemoteOpen, "Exec"},
       }) {
    const std::string bytes = Bytes(golden.hex);
    const Frame frame = ParseOne(bytes);
    EXPECT_EQ(frame.stream_id, golden.stream_id);
    EXPECT_EQ(frame.type, FrameType::kRequest);
    EXPECT_EQ(frame.flags, golden.flags);
    Request request;
    ASSERT_TRUE(request.ParseFromString(frame.data));
    EXPECT_EQ(request.service(), "forkd.agent.v1.AgentService");
    EXPECT_EQ(request.method(), golden.method);
    std::string again;
    AppendFrame(Frame{.stream_id = golden.stream_id, .type = FrameType::kRequest, .flags = golden.flags, .data = request.SerializeAsString()}, &again);
    EXPECT_EQ(again, bytes);
  }
}

// What that client printed as `rpc error: code = Unimplemented desc = no such method: Nope`.
TEST(GoldenTest, OurStatusIsTheOneContainerdRead) {
  const std::string bytes = Bytes("0000001a0000000302000a18080c12146e6f2073756368206d6574686f643a204e6f7065");
  Response response;
  response.mutable_status()->set_code(12);
  response.mutable_status()->set_message("no such method: Nope");
  std::string ours;
  AppendFrame(Frame{.stream_id = 3, .type = FrameType::kResponse, .flags = 0, .data = response.SerializeAsString()}, &ours);
  EXPECT_EQ(ours, bytes);
}

// A status with details, which google.rpc.Status has and ours does not parse, is still a status.
TEST(GoldenTest, DetailsOfAStatusAreSkipped) {
  Response response;
  ASSERT_TRUE(response.ParseFromString(std::string("\x0a\x0d\x08\x05\x12\x04gone\x1a\x03\x0a\x01x", 15)));
  EXPECT_EQ(response.status().code(), 5);
  EXPECT_EQ(response.status().message(), "gone");
}

}  // namespace
}  // namespace forkd::ttrpc
