#include "base/sha256.h"

#include <gtest/gtest.h>

namespace forkd {
namespace {

// FIPS 180-4, examples.
TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(ToHex(Sha256Of("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(ToHex(Sha256Of("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, PiecesAreTheWholeAndTheObjectStartsAnew) {
  Sha256 hash;
  hash.Update("a");
  hash.Update("");
  hash.Update("bc");
  EXPECT_EQ(hash.Finish(), Sha256Of("abc"));
  hash.UpdateU64(0x0102030405060708);
  EXPECT_EQ(hash.Finish(), Sha256Of("\x08\x07\x06\x05\x04\x03\x02\x01"));
}

TEST(Sha256Test, HexRoundTripIsStrict) {
  const Sha256Digest digest = Sha256Of("abc");
  EXPECT_EQ(Sha256FromHex(ToHex(digest)), digest);
  std::string upper = ToHex(digest);
  upper[0] = 'B';
  for (const std::string& bad : {std::string(), upper, ToHex(digest).substr(1), ToHex(digest) + "0", std::string(64, 'g')}) {
    EXPECT_EQ(Sha256FromHex(bad), std::nullopt) << bad;
  }
}

}  // namespace
}  // namespace forkd
