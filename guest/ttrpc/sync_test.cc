#include "guest/ttrpc/sync.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "guest/ttrpc/frame.h"

namespace forkd::ttrpc {
namespace {

SyncToken TokenOf(const std::string& hex) { return *SyncToken::FromHex(hex); }

const SyncToken kPlain = TokenOf("a1b2c3d4e5f60718293a4b5c6d7e8f90");
// With borders, where a careless matcher loses its way.
const SyncToken kSelfSimilar = TokenOf("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab");
const SyncToken kPeriodic = TokenOf("00010001000100010001000100010002");

struct Scanned {
  std::string payload;                     // A '|' stands where a hello was.
  std::vector<HelloScanner::Hello> hellos;
};

Scanned Scan(const SyncToken& token, const std::string& bytes, std::size_t first, std::size_t piece) {
  HelloScanner scanner(token);
  Scanned scanned;
  HelloScanner::Sink sink;
  sink.payload = [&](std::span<const char> span) { scanned.payload.append(span.data(), span.size()); };
  sink.hello = [&](const HelloScanner::Hello& hello) {
    scanned.payload += '|';
    scanned.hellos.push_back(hello);
  };
  scanner.Feed(std::span(bytes).subspan(0, first), sink);
  for (std::size_t at = first; at < bytes.size(); at += piece) {
    scanner.Feed(std::span(bytes).subspan(at, std::min(piece, bytes.size() - at)), sink);
  }
  return scanned;
}

Nonce NonceOf(unsigned char value) {
  Nonce nonce;
  nonce.fill(value);
  return nonce;
}

TEST(SyncTokenTest, HexRoundTripsAndRefusesAnythingElse) {
  EXPECT_EQ(kPlain.ToHex(), "a1b2c3d4e5f60718293a4b5c6d7e8f90");
  EXPECT_EQ(SyncToken::FromHex("A1B2C3D4E5F60718293A4B5C6D7E8F90"), kPlain);
  for (const char* bad : {"", "a1", "a1b2c3d4e5f60718293a4b5c6d7e8f9", "a1b2c3d4e5f60718293a4b5c6d7e8f900", "g1b2c3d4e5f60718293a4b5c6d7e8f90"}) {
    EXPECT_FALSE(SyncToken::FromHex(bad).has_value()) << bad;
  }
  EXPECT_NE(SyncToken::Random(), SyncToken::Random());
}

TEST(HelloScannerTest, EverySplitFindsTheHelloAndThePayloadAround) {
  for (const SyncToken& token : {kPlain, kSelfSimilar, kPeriodic}) {
    const std::string prefix(token.bytes.begin(), token.bytes.begin() + 7);
    const std::string bytes = "before" + prefix + EncodeHello(token, NonceOf(7), 3) + "after" + prefix + "!";
    for (std::size_t first = 0; first <= bytes.size(); ++first) {
      for (std::size_t piece : {std::size_t{1}, std::size_t{2}, std::size_t{5}, bytes.size()}) {
        const Scanned scanned = Scan(token, bytes, first, piece);
        ASSERT_EQ(scanned.hellos.size(), 1u) << token.ToHex() << " " << first << " " << piece;
        EXPECT_EQ(scanned.hellos[0].nonce, NonceOf(7));
        EXPECT_EQ(scanned.hellos[0].flags, 3);
        EXPECT_EQ(scanned.payload, "before" + prefix + "|" + "after" + prefix + "!");
      }
    }
  }
}

TEST(HelloScannerTest, AHelloCutShortAtAnyByteDoesNotHideTheNextOne) {
  for (const SyncToken& token : {kPlain, kSelfSimilar, kPeriodic}) {
    const std::string cut = EncodeHello(token, NonceOf(1), 0);
    for (std::size_t keep = 0; keep < cut.size(); ++keep) {
      const std::string bytes = "x" + cut.substr(0, keep) + EncodeHello(token, NonceOf(2), 0) + "frames";
      for (std::size_t first = 0; first <= bytes.size(); ++first) {
        const Scanned scanned = Scan(token, bytes, first, bytes.size());
        ASSERT_FALSE(scanned.hellos.empty());
        EXPECT_EQ(scanned.hellos.back().nonce, NonceOf(2)) << token.ToHex() << " " << keep;
        EXPECT_EQ(scanned.payload.substr(scanned.payload.rfind('|') + 1), "frames");
      }
    }
  }
}

TEST(HelloScannerTest, WithoutATokenEveryByteIsPayload) {
  std::mt19937 random(20261124);
  for (int round = 0; round < 200; ++round) {
    std::string bytes;
    for (int i = 0; i < 300; ++i) { bytes.push_back(static_cast<char>(random() % 2 == 0 ? 0xaa : random() % 3)); }
    bytes += "end";  // So that nothing is held back.
    const Scanned scanned = Scan(kPeriodic, bytes, random() % bytes.size(), 1 + random() % 40);
    EXPECT_EQ(scanned.payload, bytes);
    EXPECT_TRUE(scanned.hellos.empty());
  }
}

TEST(AnswerScannerTest, EverythingBeforeOurAnswerIsDroppedForEverySplit) {
  const Nonce ours = NonceOf(9);
  for (const SyncToken& token : {kPlain, kSelfSimilar, kPeriodic}) {
    const std::string stale = "half a frame" + EncodeAnswer(token, NonceOf(8)) + EncodeAnswer(token, ours).substr(0, 20);
    const std::string bytes = stale + EncodeAnswer(token, ours) + "rest";
    for (std::size_t first = 0; first <= bytes.size(); ++first) {
      AnswerScanner scanner(token, ours);
      std::span<const char> in(bytes.data(), first);
      std::string rest;
      if (scanner.Feed(&in)) {
        rest.assign(in.begin(), in.end());
        rest.append(bytes, first);
      } else {
        in = std::span(bytes).subspan(first);
        ASSERT_TRUE(scanner.Feed(&in)) << first;
        rest.assign(in.begin(), in.end());
      }
      EXPECT_EQ(rest, "rest");
    }
  }
}

// What the host sends, with fillers, must reach the guest's parser without a further byte.
TEST(FillerSourceTest, AFrameThatEndsLikeTheTokenIsNotHeldBack) {
  for (const SyncToken& token : {kPlain, kSelfSimilar, kPeriodic, TokenOf("04040404040404040404040404040401"), TokenOf("00000000000000000304ffffffffffff"),
                                 TokenOf("0000000000000003040c141c242c343c")}) {
    for (std::size_t tail = 0; tail < kTokenBytes; ++tail) {
      const Nonce nonce = NonceOf(token.bytes[0]);
      FillerSource filler(token, nonce, token.bytes[0]);
      HelloScanner scanner(token);
      FrameParser parser;
      std::vector<Frame> frames;
      HelloScanner::Sink sink;
      sink.hello = [&](const HelloScanner::Hello&) { parser.Reset(); };
      sink.payload = [&](std::span<const char> in) {
        while (parser.Feed(&in) == FrameParser::Result::kFrame) {
          if (parser.frame().stream_id != 0) { frames.push_back(parser.frame()); }
        }
      };
      scanner.Feed(EncodeHello(token, nonce, token.bytes[0]), sink);
      for (int i = 1; i <= 3; ++i) {
        Frame frame{.stream_id = 5, .type = FrameType::kData, .data = "data" + std::string(token.bytes.begin(), token.bytes.begin() + tail)};
        std::string bytes;
        AppendFrame(frame, &bytes);
        filler.AppendFillerIfNeeded(&bytes);
        scanner.Feed(bytes, sink);
        ASSERT_EQ(frames.size(), static_cast<std::size_t>(i)) << token.ToHex() << " tail " << tail;
        EXPECT_EQ(frames.back(), frame);
      }
    }
  }
}

}  // namespace
}  // namespace forkd::ttrpc
