#include "snapshot/pages_file.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "snapshot/testing/sample_pages.h"

namespace forkd::snapshot {
namespace {

constexpr std::uint64_t kManyPages = 1 << 20;

std::string Example() { return *EncodePages(DocumentedPagesForTest(), 16); }

TEST(PagesFileTest, MatchesTheDocumentedExample) {
  const absl::StatusOr<EncodedPages> encoded = EncodePagesHead(DocumentedPagesForTest(), 16);
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  EXPECT_EQ(ToHex(encoded->digest), "2d42a37b54f099bc70f02ce5d5220a8c6cd228e17ac1562398c74accd14ffb55");
  const std::string file = Example();
  ASSERT_EQ(file.size(), 0x3000u);
  EXPECT_EQ(file.substr(0, 0x40), std::string("FKDPAGES\1\0\0\0\0\x10\0\0"
                                              "\x10\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0"
                                              "\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0"
                                              "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 0x40));
  EXPECT_EQ(file.substr(0x70, 0x10), std::string("\6\0\0\0\0\0\0\0\2\0\0\0\1\0\0\0", 0x10));
  EXPECT_EQ(file.substr(0xd0, 0x1000 - 0xd0), std::string(0x1000 - 0xd0, '\0'));
  EXPECT_EQ(file.substr(0x1000, 0x1000), std::string(0x1000, 'A'));
  EXPECT_EQ(file.substr(0x2000, 0x1000), std::string(0x1000, 'B'));
}

TEST(PagesFileTest, EmptySetHasAHeaderAlone) {
  const std::string file = *EncodePages(PageSet(), 16);
  EXPECT_EQ(file.size(), 4096u);
  const absl::StatusOr<PageSet> read = DecodePages(file, kManyPages);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->empty());
}

TEST(PagesFileTest, ZeroPagesTakeNoBytes) {
  std::vector<std::pair<PageIndex, char>> pages;
  for (PageIndex i = 0; i < 1000; ++i) { pages.emplace_back(i, 0); }
  const std::string file = *EncodePages(PagesForTest(pages), 1000);
  EXPECT_EQ(file.size(), 4096u);  // header and 4 extents
  EXPECT_TRUE(SamePages(*DecodePages(file, kManyPages), PagesForTest(pages)));
}

TEST(PagesFileTest, LongRunsAreCutIntoExtentsOfAMebibyte) {
  std::vector<std::pair<PageIndex, char>> pages;
  for (PageIndex i = 0; i < 600; ++i) { pages.emplace_back(i + 7, 'x'); }
  const PageSet set = PagesForTest(pages);
  const EncodedPages encoded = *EncodePagesHead(set, 700);
  ASSERT_EQ(encoded.index.extents.size(), 3u);
  EXPECT_EQ(encoded.index.extents[0].pages, 256u);
  EXPECT_EQ(encoded.index.extents[2].pages, 600u - 512u);
  // One write for all of them.
  EXPECT_EQ(StoredRuns(set, encoded.index).size(), 1u);
}

TEST(PagesFileTest, DecodingUndoesEncoding) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::pair<PageIndex, char>> pages;
    const std::uint64_t root = 1 + random() % 2000;
    // Runs of zero and other pages, dense and sparse.
    const unsigned keep = 1 + random() % 8;
    char byte = 0;
    for (PageIndex i = 0; i < root; ++i) {
      if (random() % 10 == 0) { byte = static_cast<char>(random() % 3); }
      if (random() % 8 < keep) { pages.emplace_back(i, byte); }
    }
    const PageSet set = PagesForTest(pages);
    const absl::StatusOr<std::string> file = EncodePages(set, root);
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::StatusOr<PageSet> read = DecodePages(*file, kManyPages);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(SamePages(set, *read));
  }
}

TEST(PagesFileTest, PageBeyondTheRootIsNotEncoded) {
  EXPECT_EQ(ReasonOf(EncodePages(PagesForTest({{16, 'x'}}), 16).status()), "INVALID_FIELD");
  EXPECT_EQ(ReasonOf(EncodePages(PageSet(), 0).status()), "INVALID_FIELD");
  EXPECT_EQ(ReasonOf(EncodePages(PageSet(), kMaxRootPages + 1).status()), "INVALID_FIELD");
}

TEST(PagesFileTest, EveryFlippedByteIsFound) {
  const std::string file = Example();
  const Sha256Digest digest = EncodePagesHead(DocumentedPagesForTest(), 16)->digest;
  for (std::size_t i = 0; i < file.size(); i += i < 0x110 ? 1 : 97) {
    std::string bad = file;
    bad[i] = static_cast<char>(bad[i] ^ 0x40);
    // The header and extents are covered by the manifest's digest, the rest by the extents' own.
    const bool found = !DecodePages(bad, kManyPages).ok() || Sha256Of(absl::string_view(bad).substr(0, 0xd0)) != digest;
    EXPECT_TRUE(found) << "byte " << i;
  }
}

TEST(PagesFileTest, DamagedPagesAreNamed) {
  std::string file = Example();
  file[0x2fff] = 'b';
  const absl::Status status = DecodePages(file, kManyPages).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "SNAPSHOT_DAMAGED");
  EXPECT_NE(status.message().find("pages.bin: offset 8192: page 9 "), absl::string_view::npos) << status;
}

TEST(PagesFileTest, EveryTruncationIsFound) {
  const std::string file = Example();
  for (std::size_t size = 0; size < file.size(); size += size < 0x110 ? 1 : 61) {
    EXPECT_EQ(ReasonOf(DecodePages(absl::string_view(file).substr(0, size), kManyPages).status()), "SNAPSHOT_DAMAGED") << size;
  }
  EXPECT_EQ(ReasonOf(DecodePages(file + "x", kManyPages).status()), "SNAPSHOT_DAMAGED");
}

TEST(PagesFileTest, AnotherVersionIsIncompatible) {
  std::string file = Example();
  file[8] = 2;
  EXPECT_EQ(ReasonOf(DecodePages(file, kManyPages).status()), "SNAPSHOT_INCOMPATIBLE");
}

void Put(std::string& file, std::size_t at, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) { file[at + static_cast<std::size_t>(i)] = static_cast<char>(value >> (8 * i)); }
}

TEST(PagesFileTest, CountsAndPlacesThatCannotBeAreRefusedWithTheirOffset) {
  struct Lie {
    std::size_t at;
    std::uint64_t value;
    int bytes;
    const char* said;
  };
  const Lie lies[] = {
      {12, 8192, 4, "offset 12"},
      {16, 0, 8, "offset 16"},
      {16, ~std::uint64_t{0}, 8, "offset 16"},
      {16, 9, 8, "beyond the root"},
      {24, 17, 8, "offset 24"},
      {24, 5, 8, "offset 24"},
      {32, 5, 8, "offset 32"},
      {40, 5, 8, "offset 40"},
      {48, 1, 1, "offset 48"},
      {0x40, 15, 8, "follows one that ends"},     // behind its successor
      {0x40, std::uint64_t{1} << 63, 8, "beyond"},
      {0x48, 0, 4, "extent of 0 pages"},
      {0x48, 257, 4, "extent of 257 pages"},
      {0x4c, 2, 4, "flags"},
      {0x4c, 1, 4, "has a digest"},
      {0x78, 1, 4, "the extents have 3 pages"},
      {0x7c, 0, 4, "the extents store 4 pages"},
      {0xd0, 1, 1, "padding"},
  };
  for (const Lie& lie : lies) {
    std::string file = Example();
    Put(file, lie.at, lie.value, lie.bytes);
    const absl::Status status = DecodePages(file, kManyPages).status();
    EXPECT_EQ(ReasonOf(status), "SNAPSHOT_DAMAGED") << lie.said;
    EXPECT_NE(status.message().find(lie.said), absl::string_view::npos) << lie.said << ": " << status;
  }
}

TEST(PagesFileTest, SmallFileCannotAskForMuchMemory) {
  std::vector<std::pair<PageIndex, char>> pages;
  for (PageIndex i = 0; i < 300; ++i) { pages.emplace_back(i, 0); }
  const absl::Status status = DecodePages(*EncodePages(PagesForTest(pages), 300), 299).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "LIMIT_REACHED");
}

}  // namespace
}  // namespace forkd::snapshot
