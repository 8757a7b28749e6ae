// Page sets from a short description, for tests.
#ifndef FORKD_SNAPSHOT_TESTING_SAMPLE_PAGES_H_
#define FORKD_SNAPSHOT_TESTING_SAMPLE_PAGES_H_

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "base/mapping.h"
#include "base/page_set.h"

namespace forkd::snapshot {

// Pages with all bytes equal: {index, byte}, ascending.
inline PageSet PagesForTest(const std::vector<std::pair<PageIndex, char>>& pages) {
  absl::StatusOr<Mapping> bytes = Mapping::Anonymous(pages.size() * kPageBytes, Mapping::Prefault::kNo);
  if (!bytes.ok()) { std::abort(); }
  std::vector<PageIndex> indexes;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    indexes.push_back(pages[i].first);
    std::memset(bytes->data() + i * kPageBytes, pages[i].second, kPageBytes);
  }
  absl::StatusOr<PageSet> set = PageSet::Create(std::move(indexes), *std::move(bytes));
  if (!set.ok()) { std::abort(); }
  return *std::move(set);
}

// The example of docs/snapshot-format.md: a root of 16 pages.
inline PageSet DocumentedPagesForTest() { return PagesForTest({{5, 'A'}, {6, 0}, {7, 0}, {9, 'B'}}); }

inline bool SamePages(const PageSet& a, const PageSet& b) {
  return a.indexes() == b.indexes() && (a.empty() || std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0);
}

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_TESTING_SAMPLE_PAGES_H_
