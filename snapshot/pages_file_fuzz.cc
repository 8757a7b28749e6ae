// Whatever the bytes: a clear error, or pages that encode and decode to themselves.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "snapshot/pages_file.h"
#include "snapshot/testing/sample_pages.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace forkd::snapshot;
  const absl::string_view file(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<forkd::PageSet> pages = DecodePages(file, 4096);
  if (!pages.ok()) { return 0; }
  // The file's own header is right: it was decoded.
  const std::uint64_t root_pages = ParsePagesHeader(file, size)->root_pages;
  const absl::StatusOr<std::string> written = EncodePages(*pages, root_pages);
  if (!written.ok()) { std::abort(); }
  const absl::StatusOr<forkd::PageSet> again = DecodePages(*written, 4096);
  if (!again.ok() || !SamePages(*pages, *again)) { std::abort(); }
  return 0;
}
