#include "base/page_set.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

namespace forkd {
namespace {

PageSet Pages(const std::map<PageIndex, char>& contents) {
  std::vector<PageIndex> indexes;
  Mapping bytes = *Mapping::Anonymous(contents.size() * kPageBytes, Mapping::Prefault::kNo);
  for (const auto& [index, byte] : contents) {
    std::memset(bytes.data() + indexes.size() * kPageBytes, byte, kPageBytes);
    indexes.push_back(index);
  }
  return *PageSet::Create(std::move(indexes), std::move(bytes));
}

std::map<PageIndex, char> Contents(const PageSet& set) {
  std::map<PageIndex, char> contents;
  for (int64_t i = 0; i < set.page_count(); ++i) {
    const absl::Span<const char> page = set.page(i);
    EXPECT_EQ(std::count(page.begin(), page.end(), page[0]), kPageBytes);
    contents[set.indexes()[static_cast<std::size_t>(i)]] = page[0];
  }
  return contents;
}

TEST(PageSet, RefusesIndexesThatDoNotAscend) {
  EXPECT_EQ(PageSet::Create({1, 1}, *Mapping::Anonymous(2 * kPageBytes, Mapping::Prefault::kNo)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PageSet::Create({5, 2}, *Mapping::Anonymous(2 * kPageBytes, Mapping::Prefault::kNo)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PageSet, RefusesFewerBytesThanPages) {
  EXPECT_EQ(PageSet::Create({1, 2}, *Mapping::Anonymous(2 * kPageBytes - 1, Mapping::Prefault::kNo)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PageSet, UniteTakesTheNewerPageWhereBothHaveOne) {
  const PageSet united = *PageSet::Unite(Pages({{1, 'a'}, {3, 'b'}, {9, 'c'}}), Pages({{0, 'x'}, {3, 'y'}}));
  EXPECT_EQ(Contents(united), (std::map<PageIndex, char>{{0, 'x'}, {1, 'a'}, {3, 'y'}, {9, 'c'}}));
}

TEST(PageSet, UniteOfEmptySets) {
  EXPECT_TRUE(PageSet::Unite(PageSet(), PageSet())->empty());
  EXPECT_EQ(Contents(*PageSet::Unite(Pages({{7, 'q'}}), PageSet())), (std::map<PageIndex, char>{{7, 'q'}}));
  EXPECT_EQ(Contents(*PageSet::Unite(PageSet(), Pages({{7, 'q'}}))), (std::map<PageIndex, char>{{7, 'q'}}));
}

TEST(PageSet, UniteEqualsAMapThatIsOverwritten) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    std::map<PageIndex, char> older;
    std::map<PageIndex, char> newer;
    for (int i = 0; i < 20; ++i) {
      if (random() % 2 == 0) { older[random() % 40] = static_cast<char>(random()); }
      if (random() % 2 == 0) { newer[random() % 40] = static_cast<char>(random()); }
    }
    std::map<PageIndex, char> expected = older;
    for (const auto& [index, byte] : newer) { expected[index] = byte; }
    EXPECT_EQ(Contents(*PageSet::Unite(Pages(older), Pages(newer))), expected);
  }
}

TEST(Mapping, ShrinkingKeepsTheBytesInFront) {
  Mapping mapping = *Mapping::Anonymous(10 * kPageBytes, Mapping::Prefault::kYes);
  mapping.data()[0] = 'a';
  mapping.data()[2 * kPageBytes] = 'b';
  mapping.ShrinkTo(2 * kPageBytes + 1);
  EXPECT_EQ(mapping.size(), static_cast<std::size_t>(2 * kPageBytes + 1));
  EXPECT_EQ(mapping.data()[0], 'a');
  EXPECT_EQ(mapping.data()[2 * kPageBytes], 'b');
  mapping.ShrinkTo(0);
  EXPECT_EQ(mapping.data(), nullptr);
}

}  // namespace
}  // namespace forkd
