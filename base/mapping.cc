#include "base/mapping.h"

#include <linux/mman.h>
#include <sys/mman.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd {
namespace {

constexpr std::size_t kHostPageBytes = 4096;
constexpr std::size_t kHugePageBytes = 2 << 20;

}  // namespace

absl::StatusOr<Mapping> Mapping::Anonymous(std::size_t bytes, Prefault prefault) {
  if (bytes == 0) { return Mapping(); }
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) { return ErrnoError(errno, absl::StrCat("map ", bytes, " bytes of memory")); }
  if (prefault == Prefault::kYes) {
    // Huge pages where they are to be had: a fault each 2 MiB instead of each 4 KiB. Both are hints; without them the writes fault.
    if (bytes >= kHugePageBytes) { ::madvise(data, bytes, MADV_HUGEPAGE); }
    ::madvise(data, bytes, MADV_POPULATE_WRITE);
  }
  // Guest pages must not end up in a core file of ours. Cannot fail on a mapping that was just made.
  ::madvise(data, bytes, MADV_DONTDUMP);
  return Mapping(static_cast<char*>(data), bytes);
}

absl::StatusOr<Mapping> Mapping::ReadOnly(int fd, std::size_t bytes) {
  if (bytes == 0) { return Mapping(); }
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) { return ErrnoError(errno, absl::StrCat("map ", bytes, " bytes of a file")); }
  ::madvise(data, bytes, MADV_DONTDUMP);
  return Mapping(static_cast<char*>(data), bytes);
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

void Mapping::ShrinkTo(std::size_t bytes) {
  const std::size_t kept = (bytes + kHostPageBytes - 1) / kHostPageBytes * kHostPageBytes;
  const std::size_t mapped = (size_ + kHostPageBytes - 1) / kHostPageBytes * kHostPageBytes;
  if (bytes >= size_) { return; }
  if (kept == 0) {
    Unmap();
    return;
  }
  if (kept < mapped) { ::munmap(data_ + kept, mapped - kept); }
  size_ = bytes;
}

void Mapping::Unmap() {
  if (data_ != nullptr) { ::munmap(data_, size_); }
  data_ = nullptr;
  size_ = 0;
}

}  // namespace forkd
