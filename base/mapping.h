// Owns a memory mapping (mmap) and unmaps it.
#ifndef FORKD_BASE_MAPPING_H_
#define FORKD_BASE_MAPPING_H_

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace forkd {

// Move-only; moving it leaves the bytes where they are. Not thread-safe, the bytes are the user's to guard.
class Mapping {
 public:
  // kYes touches every page at once (MADV_POPULATE_WRITE), so that later writes take no page faults: for copies that happen while a guest is stopped.
  enum class Prefault { kNo, kYes };

  Mapping() = default;
  // Zeroed anonymous private memory. `bytes` 0 gives an empty mapping. RESOURCE_EXHAUSTED (HOST_LIMIT) without memory.
  static absl::StatusOr<Mapping> Anonymous(std::size_t bytes, Prefault prefault);
  // The first `bytes` of `fd` (borrowed), read-only and shared. For memfds and files that nobody shrinks.
  static absl::StatusOr<Mapping> ReadOnly(int fd, std::size_t bytes);

  Mapping(Mapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { Unmap(); }

  char* data() { return data_; }
  const char* data() const { return data_; }
  std::size_t size() const { return size_; }
  absl::Span<const char> bytes() const { return absl::MakeConstSpan(data_, size_); }
  // Gives back the pages behind the first `bytes` (rounded up to whole pages); the mapping becomes that short.
  void ShrinkTo(std::size_t bytes);

 private:
  Mapping(char* data, std::size_t size) : data_(data), size_(size) {}
  void Unmap();
  char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace forkd

#endif  // FORKD_BASE_MAPPING_H_
