#include "snapshot/pages_file.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/mapping.h"
#include "base/status_macros.h"
#include "snapshot/damage.h"
#include "snapshot/manifest.h"
#include "snapshot/zero_bytes.h"

namespace forkd::snapshot {
namespace {

constexpr absl::string_view kMagic = "FKDPAGES";
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kZeroFlag = 1;
constexpr std::uint64_t kPage = kPageBytes;

void Put(std::string& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) { out.push_back(static_cast<char>(value >> (8 * i) & 0xff)); }
}

// The caller has checked that the bytes are there.
std::uint64_t Get(absl::string_view bytes, std::size_t offset, int count) {
  std::uint64_t value = 0;
  for (int i = 0; i < count; ++i) { value |= std::uint64_t{static_cast<unsigned char>(bytes[offset + i])} << (8 * i); }
  return value;
}

absl::Status DamagedAt(std::uint64_t offset, absl::string_view what) { return Damaged(kPagesName, absl::StrCat("offset ", offset, ": ", what)); }

absl::string_view View(absl::Span<const char> bytes) { return absl::string_view(bytes.data(), bytes.size()); }

std::string PagesText(const Extent& extent) {
  return extent.pages == 1 ? absl::StrCat("page ", extent.first) : absl::StrCat("pages ", extent.first, " to ", extent.first + extent.pages - 1);
}

std::string SerializeHead(const PagesIndex& index) {
  std::string head;
  head.reserve(index.header.DataStart());
  head.append(kMagic.data(), kMagic.size());
  Put(head, kVersion, 4);
  Put(head, kPage, 4);
  Put(head, index.header.root_pages, 8);
  Put(head, index.header.page_count, 8);
  Put(head, index.header.stored_pages, 8);
  Put(head, index.header.extent_count, 8);
  head.resize(kPagesHeaderBytes);
  for (const Extent& extent : index.extents) {
    Put(head, extent.first, 8);
    Put(head, extent.pages, 4);
    Put(head, extent.zero ? kZeroFlag : 0, 4);
    head.append(reinterpret_cast<const char*>(extent.digest.data()), extent.digest.size());
  }
  return head;
}

}  // namespace

absl::StatusOr<EncodedPages> EncodePagesHead(const PageSet& pages, std::uint64_t root_pages) {
  if (root_pages == 0 || root_pages > kMaxRootPages) {
    return InvalidField("root_pages", absl::StrCat("must be 1 to ", kMaxRootPages, "; got ", root_pages));
  }
  const absl::Span<const PageIndex> indexes = pages.indexes();
  if (!indexes.empty() && indexes.back() >= root_pages) {
    return InvalidField("pages", absl::StrCat("page ", indexes.back(), " lies beyond the root's ", root_pages, " pages"));
  }
  EncodedPages encoded;
  PagesIndex& index = encoded.index;
  index.header.root_pages = root_pages;
  index.header.page_count = indexes.size();
  std::size_t position = 0;  // of the current extent's first page in `pages`
  const auto finish_extent = [&] {
    Extent& extent = index.extents.back();
    if (!extent.zero) {
      extent.digest = Sha256Of(View(pages.bytes().subspan(position * kPage, extent.pages * kPage)));
      index.header.stored_pages += extent.pages;
    }
    position += extent.pages;
  };
  for (std::size_t i = 0; i < indexes.size(); ++i) {
    const bool zero = AllZero(View(pages.page(static_cast<std::int64_t>(i))));
    const bool continues = !index.extents.empty() && index.extents.back().zero == zero && index.extents.back().pages < kMaxExtentPages &&
                           index.extents.back().first + index.extents.back().pages == indexes[i];
    if (continues) {
      ++index.extents.back().pages;
      continue;
    }
    if (!index.extents.empty()) { finish_extent(); }
    index.extents.push_back(Extent{.first = indexes[i], .pages = 1, .zero = zero});
  }
  if (!index.extents.empty()) { finish_extent(); }
  index.header.extent_count = index.extents.size();
  encoded.head = SerializeHead(index);
  encoded.digest = Sha256Of(encoded.head);
  encoded.head.resize(index.header.DataStart());
  return encoded;
}

std::vector<absl::string_view> StoredRuns(const PageSet& pages, const PagesIndex& index) {
  std::vector<absl::string_view> runs;
  const absl::string_view bytes = View(pages.bytes());
  std::size_t position = 0;
  bool open = false;  // the last run may grow: nothing was left out since
  for (const Extent& extent : index.extents) {
    const absl::string_view run = bytes.substr(position * kPage, extent.pages * kPage);
    position += extent.pages;
    if (extent.zero) {
      open = false;
    } else if (open) {
      runs.back() = absl::string_view(runs.back().data(), runs.back().size() + run.size());
    } else {
      runs.push_back(run);
      open = true;
    }
  }
  return runs;
}

absl::StatusOr<std::string> EncodePages(const PageSet& pages, std::uint64_t root_pages) {
  FORKD_ASSIGN_OR_RETURN(EncodedPages encoded, EncodePagesHead(pages, root_pages));
  std::string file = std::move(encoded.head);
  for (const absl::string_view run : StoredRuns(pages, encoded.index)) { file.append(run.data(), run.size()); }
  return file;
}

absl::StatusOr<PagesHeader> ParsePagesHeader(absl::string_view bytes, std::uint64_t file_bytes) {
  if (bytes.size() < kPagesHeaderBytes || file_bytes < kPagesHeaderBytes) {
    return DamagedAt(std::min<std::uint64_t>(bytes.size(), file_bytes), "ends within the header");
  }
  if (bytes.substr(0, kMagic.size()) != kMagic) { return DamagedAt(0, absl::StrCat("begins with ", Quoted(bytes.substr(0, kMagic.size())))); }
  const std::uint64_t version = Get(bytes, 8, 4);
  if (version != kVersion) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotIncompatible,
                 absl::StrCat(kPagesName, ": offset 8: has version ", version, ", this forkd reads ", kVersion))
        .Meta("file", kPagesName);
  }
  if (Get(bytes, 12, 4) != kPage) { return DamagedAt(12, absl::StrCat("page size is ", Get(bytes, 12, 4))); }
  PagesHeader header;
  header.root_pages = Get(bytes, 16, 8);
  header.page_count = Get(bytes, 24, 8);
  header.stored_pages = Get(bytes, 32, 8);
  header.extent_count = Get(bytes, 40, 8);
  if (header.root_pages == 0 || header.root_pages > kMaxRootPages) { return DamagedAt(16, absl::StrCat("the root has ", header.root_pages, " pages")); }
  if (header.page_count > header.root_pages) { return DamagedAt(24, absl::StrCat(header.page_count, " pages in a root of ", header.root_pages)); }
  if (header.stored_pages > header.page_count) { return DamagedAt(32, absl::StrCat(header.stored_pages, " of ", header.page_count, " pages stored")); }
  if (header.extent_count > header.page_count) { return DamagedAt(40, absl::StrCat(header.extent_count, " extents for ", header.page_count, " pages")); }
  if (!AllZero(bytes.substr(48, 16))) { return DamagedAt(48, "reserved bytes are not zero"); }
  // No overflow: each count is at most 2^28, so the sum is below 2^41.
  if (header.FileBytes() != file_bytes) {
    return Damaged(kPagesName, absl::StrCat("has ", file_bytes, " bytes, its header says ", header.FileBytes()));
  }
  return header;
}

absl::StatusOr<PagesIndex> ParsePagesIndex(absl::string_view bytes, const PagesHeader& header) {
  if (bytes.size() < header.IndexEnd()) { return DamagedAt(bytes.size(), "ends within the extents"); }
  PagesIndex index;
  index.header = header;
  index.extents.reserve(header.extent_count);
  std::uint64_t next = 0;  // the lowest index that the next extent may begin at
  std::uint64_t page_count = 0;
  std::uint64_t stored_pages = 0;
  for (std::uint64_t i = 0; i < header.extent_count; ++i) {
    const std::size_t at = kPagesHeaderBytes + i * kExtentBytes;
    Extent extent;
    extent.first = Get(bytes, at, 8);
    const std::uint64_t pages = Get(bytes, at + 8, 4);
    const std::uint64_t flags = Get(bytes, at + 12, 4);
    std::memcpy(extent.digest.data(), bytes.data() + at + 16, extent.digest.size());
    if (extent.first < next) { return DamagedAt(at, absl::StrCat("extent of page ", extent.first, " follows one that ends at ", next)); }
    if (pages == 0 || pages > kMaxExtentPages) { return DamagedAt(at + 8, absl::StrCat("extent of ", pages, " pages")); }
    if (extent.first >= header.root_pages || pages > header.root_pages - extent.first) {
      return DamagedAt(at, absl::StrCat("extent of ", pages, " pages from ", extent.first, " ends beyond the root's ", header.root_pages));
    }
    if ((flags & ~std::uint64_t{kZeroFlag}) != 0) { return DamagedAt(at + 12, absl::StrCat("flags are ", flags)); }
    extent.pages = static_cast<std::uint32_t>(pages);
    extent.zero = flags == kZeroFlag;
    if (extent.zero && extent.digest != Sha256Digest{}) { return DamagedAt(at + 16, "a zero extent has a digest"); }
    next = extent.first + pages;
    page_count += pages;
    stored_pages += extent.zero ? 0 : pages;
    index.extents.push_back(extent);
  }
  if (page_count != header.page_count) { return DamagedAt(24, absl::StrCat("the extents have ", page_count, " pages, the header says ", header.page_count)); }
  if (stored_pages != header.stored_pages) {
    return DamagedAt(32, absl::StrCat("the extents store ", stored_pages, " pages, the header says ", header.stored_pages));
  }
  return index;
}

absl::Status CheckExtent(const Extent& extent, absl::string_view bytes, std::uint64_t file_offset) {
  if (Sha256Of(bytes) != extent.digest) { return DamagedAt(file_offset, absl::StrCat(PagesText(extent), " differ from their digest")); }
  return absl::OkStatus();
}

std::vector<PageIndex> IndexesOf(const PagesIndex& index) {
  std::vector<PageIndex> indexes;
  indexes.reserve(index.header.page_count);
  for (const Extent& extent : index.extents) {
    for (std::uint32_t i = 0; i < extent.pages; ++i) { indexes.push_back(extent.first + i); }
  }
  return indexes;
}

absl::StatusOr<PageSet> DecodePages(absl::string_view file, std::uint64_t max_pages) {
  FORKD_ASSIGN_OR_RETURN(const PagesHeader header, ParsePagesHeader(file, file.size()));
  if (header.page_count > max_pages) {
    return Error(absl::StatusCode::kResourceExhausted, Reason::kLimitReached,
                 absl::StrCat(kPagesName, ": has ", header.page_count, " pages, the limit is ", max_pages));
  }
  FORKD_ASSIGN_OR_RETURN(const PagesIndex index, ParsePagesIndex(file, header));
  if (!AllZero(file.substr(header.IndexEnd(), header.DataStart() - header.IndexEnd()))) { return DamagedAt(header.IndexEnd(), "padding is not zero"); }
  FORKD_ASSIGN_OR_RETURN(Mapping bytes, Mapping::Anonymous(header.page_count * kPage, Mapping::Prefault::kNo));
  std::uint64_t from = header.DataStart();
  std::uint64_t to = 0;
  for (const Extent& extent : index.extents) {
    const std::uint64_t length = extent.pages * kPage;
    if (!extent.zero) {
      const absl::string_view stored = file.substr(from, length);
      FORKD_RETURN_IF_ERROR(CheckExtent(extent, stored, from));
      std::memcpy(bytes.data() + to, stored.data(), length);
      from += length;
    }
    to += length;
  }
  return PageSet::Create(IndexesOf(index), std::move(bytes));
}

}  // namespace forkd::snapshot
