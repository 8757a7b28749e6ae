#include "guest/ttrpc/frame.h"

#include <gtest/gtest.h>

#include <vector>

namespace forkd::ttrpc {
namespace {

struct Parsed {
  std::vector<Frame> frames;
  bool broken = false;
  std::string why;
  uint64_t offset = 0;
};

Parsed ParsePieces(const std::string& bytes, std::size_t piece, std::size_t max_data_bytes = kMaxDataBytes) {
  FrameParser parser(max_data_bytes);
  Parsed parsed;
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    std::span<const char> in(bytes.data() + at, std::min(piece, bytes.size() - at));
    while (true) {
      const FrameParser::Result result = parser.Feed(&in);
      if (result == FrameParser::Result::kNeedMore) { break; }
      if (result == FrameParser::Result::kBroken) {
        parsed.broken = true;
        parsed.why = parser.why();
        parsed.offset = parser.offset();
        return parsed;
      }
      parsed.frames.push_back(parser.frame());
    }
  }
  return parsed;
}

TEST(FrameTest, HeaderIsLengthStreamTypeFlagsBigEndian) {
  std::string out;
  AppendFrame(Frame{.stream_id = 0x01020305, .type = FrameType::kData, .flags = kFlagRemoteClosed, .data = "abc"}, &out);
  EXPECT_EQ(out, std::string("\0\0\0\3\1\2\3\5\3\1abc", 13));
}

TEST(FrameTest, AnySplitOfTheInputGivesTheSameFrames) {
  std::vector<Frame> frames = {
      {.stream_id = 1, .type = FrameType::kRequest, .flags = kFlagRemoteOpen, .data = "hello"},
      {.stream_id = 3, .type = FrameType::kData, .flags = kFlagNoData, .data = ""},
      {.stream_id = 0xffffffff, .type = FrameType::kResponse, .flags = 0, .data = std::string(70, 'x')},
  };
  std::string bytes;
  for (const Frame& frame : frames) { AppendFrame(frame, &bytes); }
  for (std::size_t piece = 1; piece <= bytes.size(); ++piece) {
    const Parsed parsed = ParsePieces(bytes, piece);
    EXPECT_FALSE(parsed.broken);
    EXPECT_EQ(parsed.frames, frames) << "pieces of " << piece;
  }
}

TEST(FrameTest, AFrameOfTheLimitPassesAndOneByteMoreIsBrokenAtItsHeader) {
  std::string bytes;
  AppendFrame(Frame{.stream_id = 1, .data = std::string(100, 'a')}, &bytes);
  EXPECT_EQ(ParsePieces(bytes, 1000, 100).frames.size(), 1u);
  AppendFrame(Frame{.stream_id = 3, .data = std::string(101, 'a')}, &bytes);
  const Parsed parsed = ParsePieces(bytes, 1, 100);
  EXPECT_EQ(parsed.frames.size(), 1u);
  EXPECT_TRUE(parsed.broken);
  EXPECT_EQ(parsed.offset, kHeaderBytes + 100);
  EXPECT_EQ(parsed.why, "frame longer than the limit");
}

TEST(FrameTest, UnknownTypesAreBroken) {
  for (int type : {0, 4, 255}) {
    const std::string bytes{0, 0, 0, 0, 0, 0, 0, 1, static_cast<char>(type), 0};
    EXPECT_TRUE(ParsePieces(bytes, 10).broken) << type;
  }
}

TEST(FrameTest, AfterResetABrokenParserParsesAgain) {
  FrameParser parser;
  const std::string bad(10, '\xff');
  std::span<const char> in(bad);
  EXPECT_EQ(parser.Feed(&in), FrameParser::Result::kBroken);
  EXPECT_EQ(parser.Feed(&in), FrameParser::Result::kBroken);
  parser.Reset();
  std::string good;
  AppendFrame(Frame{.stream_id = 5, .data = "x"}, &good);
  in = std::span<const char>(good);
  ASSERT_EQ(parser.Feed(&in), FrameParser::Result::kFrame);
  EXPECT_EQ(parser.frame().stream_id, 5u);
  EXPECT_FALSE(parser.InFrame());
}

TEST(FrameTest, MemoryFollowsTheBytesThatCameNotTheHeadersWord) {
  FrameParser parser;
  std::string header;
  AppendHeader(kMaxDataBytes, 1, FrameType::kData, 0, &header);
  std::span<const char> in(header);
  EXPECT_EQ(parser.Feed(&in), FrameParser::Result::kNeedMore);
  EXPECT_LT(parser.frame().data.capacity(), 1024u);
}

}  // namespace
}  // namespace forkd::ttrpc
