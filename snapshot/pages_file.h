// pages.bin: the pages in which a branch differs from its root, as docs/snapshot-format.md lays them out. Pure functions over bytes; the store
// does the reading and writing.
#ifndef FORKD_SNAPSHOT_PAGES_FILE_H_
#define FORKD_SNAPSHOT_PAGES_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/page_set.h"
#include "base/sha256.h"
#include "snapshot/manifest.h"  // kMaxRootPages

namespace forkd::snapshot {

inline constexpr std::size_t kPagesHeaderBytes = 64;
inline constexpr std::size_t kExtentBytes = 48;
// 1 MiB: damage is located to that much, and hashing one extent needs no buffer beyond the CPU's cache.
inline constexpr std::uint32_t kMaxExtentPages = 256;

struct PagesHeader {
  std::uint64_t root_pages = 0;    // size of the root image in pages; every index is below it
  std::uint64_t page_count = 0;    // pages of the set, zero pages included
  std::uint64_t stored_pages = 0;  // pages that have bytes in the file
  std::uint64_t extent_count = 0;

  std::uint64_t IndexEnd() const { return kPagesHeaderBytes + extent_count * kExtentBytes; }
  // Where the first stored page begins: IndexEnd() rounded up to a page.
  std::uint64_t DataStart() const { return (IndexEnd() + kPageBytes - 1) / kPageBytes * kPageBytes; }
  std::uint64_t FileBytes() const { return DataStart() + stored_pages * kPageBytes; }
};

// A run of consecutive pages, all zero or all stored.
struct Extent {
  PageIndex first = 0;
  std::uint32_t pages = 0;  // 1 … kMaxExtentPages
  bool zero = false;
  Sha256Digest digest = {};  // of the stored bytes; all zero for a zero extent
};

struct PagesIndex {
  PagesHeader header;
  std::vector<Extent> extents;
};

// What stands before the stored pages, and in which order pages follow. Reads every byte once (zero test and hash).
struct EncodedPages {
  PagesIndex index;
  std::string head;       // header, extents, padding: DataStart() bytes
  Sha256Digest digest;    // the file's digest by the scheme sha256-index: SHA-256 of header and extents, without the padding
};
// INVALID_ARGUMENT INVALID_FIELD if an index is not below `root_pages`, or `root_pages` is 0 or above kMaxRootPages.
absl::StatusOr<EncodedPages> EncodePagesHead(const PageSet& pages, std::uint64_t root_pages);
// Runs of bytes of `pages` that follow the head, in file order. Borrow from `pages`.
std::vector<absl::string_view> StoredRuns(const PageSet& pages, const PagesIndex& index);
// The whole file, for small sets and tests.
absl::StatusOr<std::string> EncodePages(const PageSet& pages, std::uint64_t root_pages);

// Errors of all below: FAILED_PRECONDITION SNAPSHOT_DAMAGED, "pages.bin: offset N: …"; another version is SNAPSHOT_INCOMPATIBLE.

// From the file's first kPagesHeaderBytes and its size. After this all sums of the header's counts are known to fit in the file.
absl::StatusOr<PagesHeader> ParsePagesHeader(absl::string_view bytes, std::uint64_t file_bytes);
// From the file's first header.IndexEnd() bytes: extents ascending, not overlapping, within the root, and adding up to the header's counts.
absl::StatusOr<PagesIndex> ParsePagesIndex(absl::string_view bytes, const PagesHeader& header);
// One stored extent's bytes against its digest; `file_offset` is where they stand.
absl::Status CheckExtent(const Extent& extent, absl::string_view bytes, std::uint64_t file_offset);
// Every page's index, in order.
std::vector<PageIndex> IndexesOf(const PagesIndex& index);
// The whole file. RESOURCE_EXHAUSTED LIMIT_REACHED if it has more than `max_pages` (zero pages cost the reader memory, but the writer nothing).
absl::StatusOr<PageSet> DecodePages(absl::string_view file, std::uint64_t max_pages);

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_PAGES_FILE_H_
