// A set of guest pages with their contents: what a branch's memory has over its root image.
#ifndef FORKD_BASE_PAGE_SET_H_
#define FORKD_BASE_PAGE_SET_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/mapping.h"

namespace forkd {

inline constexpr int64_t kPageBytes = 4096;

// Index of a 4 KiB page in the guest's RAM backend: offset / 4096 in the root image. Not the guest-physical page number (a guest with more
// than 3 GiB has a hole there); drivers alone know that mapping.
using PageIndex = uint64_t;

// Immutable, movable; share it as std::shared_ptr<const PageSet>. Safe to read from any thread. The bytes are one contiguous mapping, in the
// order of the indexes, so that it can be written to a file or into a VMM with a few large calls.
class PageSet {
 public:
  // Empty.
  PageSet() = default;
  // Takes `indexes`, strictly ascending, and `bytes`, at least indexes.size() * kPageBytes. INVALID_ARGUMENT (INVALID_FIELD) otherwise: the
  // indexes may come from a file.
  static absl::StatusOr<PageSet> Create(std::vector<PageIndex> indexes, Mapping bytes);
  // All pages of both; where both have a page, `newer`'s. Blocking in the sense that it copies all bytes.
  static absl::StatusOr<PageSet> Unite(const PageSet& older, const PageSet& newer);

  PageSet(PageSet&&) = default;
  PageSet& operator=(PageSet&&) = default;

  bool empty() const { return indexes_.empty(); }
  int64_t page_count() const { return static_cast<int64_t>(indexes_.size()); }
  int64_t size_bytes() const { return page_count() * kPageBytes; }
  // Ascending.
  absl::Span<const PageIndex> indexes() const { return indexes_; }
  // page_count() * kPageBytes bytes.
  absl::Span<const char> bytes() const { return bytes_.bytes().subspan(0, static_cast<std::size_t>(size_bytes())); }
  // The page that indexes()[position] names.
  absl::Span<const char> page(int64_t position) const {
    return bytes().subspan(static_cast<std::size_t>(position * kPageBytes), static_cast<std::size_t>(kPageBytes));
  }

 private:
  PageSet(std::vector<PageIndex> indexes, Mapping bytes) : indexes_(std::move(indexes)), bytes_(std::move(bytes)) {}
  std::vector<PageIndex> indexes_;
  Mapping bytes_;
};

}  // namespace forkd

#endif  // FORKD_BASE_PAGE_SET_H_
