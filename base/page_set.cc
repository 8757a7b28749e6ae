#include "base/page_set.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd {

absl::StatusOr<PageSet> PageSet::Create(std::vector<PageIndex> indexes, Mapping bytes) {
  const auto disorder = std::adjacent_find(indexes.begin(), indexes.end(), [](PageIndex a, PageIndex b) { return a >= b; });
  if (disorder != indexes.end()) {
    return InvalidField("indexes", absl::StrCat("page ", *std::next(disorder), " follows page ", *disorder, ": not in ascending order"));
  }
  if (bytes.size() / static_cast<std::size_t>(kPageBytes) < indexes.size()) {
    return InvalidField("bytes", absl::StrCat(bytes.size(), " bytes are too few for ", indexes.size(), " pages"));
  }
  return PageSet(std::move(indexes), std::move(bytes));
}

absl::StatusOr<PageSet> PageSet::Unite(const PageSet& older, const PageSet& newer) {
  std::vector<PageIndex> indexes;
  indexes.reserve(older.indexes_.size() + newer.indexes_.size());
  std::set_union(older.indexes_.begin(), older.indexes_.end(), newer.indexes_.begin(), newer.indexes_.end(), std::back_inserter(indexes));
  absl::StatusOr<Mapping> bytes = Mapping::Anonymous(indexes.size() * static_cast<std::size_t>(kPageBytes), Mapping::Prefault::kYes);
  if (!bytes.ok()) { return bytes.status(); }
  int64_t from_older = 0;
  int64_t from_newer = 0;
  char* out = bytes->data();
  for (const PageIndex index : indexes) {
    const bool in_older = from_older < older.page_count() && older.indexes_[static_cast<std::size_t>(from_older)] == index;
    const bool in_newer = from_newer < newer.page_count() && newer.indexes_[static_cast<std::size_t>(from_newer)] == index;
    const absl::Span<const char> page = in_newer ? newer.page(from_newer) : older.page(from_older);
    std::memcpy(out, page.data(), page.size());
    out += kPageBytes;
    from_older += in_older ? 1 : 0;
    from_newer += in_newer ? 1 : 0;
  }
  return PageSet(std::move(indexes), *std::move(bytes));
}

}  // namespace forkd
