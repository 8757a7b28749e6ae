#include "snapshot/memory_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/beneath.h"
#include "base/error.h"
#include "base/page_set.h"
#include "base/status_macros.h"
#include "snapshot/zero_bytes.h"

namespace forkd::snapshot {
namespace {

// Blocks read by one call: enough that the calls do not count, small enough to stay in the CPU's second-level cache.
constexpr std::uint64_t kReadBytes = 8 * kMemoryBlockBytes;

// The next place at or after `offset` where `fd` may have data; `bytes` if there is none. Holes of a file system that does not know them are data.
absl::StatusOr<std::uint64_t> NextData(int fd, std::uint64_t offset, std::uint64_t bytes, absl::string_view what) {
  const off_t found = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (found >= 0) { return std::min(static_cast<std::uint64_t>(found), bytes); }
  if (errno == ENXIO) { return bytes; }
  if (errno == EINVAL || errno == EOPNOTSUPP) { return offset; }
  return ErrnoError(errno, absl::StrCat("seek in ", what));
}

// Calls `block(number, bytes)` for each block that is not all zero, ascending.
template <typename OnBlock>
absl::Status ForEachBlock(int fd, std::uint64_t bytes, absl::string_view what, OnBlock block) {
  struct stat status = {};
  if (::fstat(fd, &status) != 0) { return ErrnoError(errno, absl::StrCat("stat ", what)); }
  if (static_cast<std::uint64_t>(status.st_size) < bytes) {
    return absl::OutOfRangeError(absl::StrCat(what, " has ", status.st_size, " bytes, not ", bytes));
  }
  const auto buffer = std::make_unique<char[]>(kReadBytes);
  std::uint64_t offset = 0;
  while (offset < bytes) {
    FORKD_ASSIGN_OR_RETURN(const std::uint64_t data, NextData(fd, offset, bytes, what));
    if (data >= bytes) { break; }
    offset = data / kMemoryBlockBytes * kMemoryBlockBytes;
    const std::uint64_t length = std::min(kReadBytes, bytes - offset);
    FORKD_RETURN_IF_ERROR(ReadAllBlocking(fd, absl::MakeSpan(buffer.get(), length), offset, what));
    for (std::uint64_t at = 0; at < length; at += kMemoryBlockBytes) {
      const absl::string_view one(buffer.get() + at, std::min(kMemoryBlockBytes, length - at));
      if (!AllZero(one)) { FORKD_RETURN_IF_ERROR(block((offset + at) / kMemoryBlockBytes, one)); }
    }
    offset += length;
  }
  return absl::OkStatus();
}

// Writes the pages of `block` that are not all zero, neighbours by one call: a page of zeros costs the copy neither disk nor RAM.
absl::Status WriteDataPages(int to, absl::string_view block, std::uint64_t offset, absl::string_view what) {
  std::uint64_t begin = 0;  // of the run being collected
  for (std::uint64_t at = 0; at < block.size(); at += kPageBytes) {
    const absl::string_view page = block.substr(at, kPageBytes);
    if (!AllZero(page)) { continue; }
    if (at > begin) { FORKD_RETURN_IF_ERROR(WriteAllBlocking(to, block.substr(begin, at - begin), offset + begin, what)); }
    begin = at + page.size();
  }
  return begin < block.size() ? WriteAllBlocking(to, block.substr(begin), offset + begin, what) : absl::OkStatus();
}

// The scheme sha256-blocks.
class BlocksDigest {
 public:
  explicit BlocksDigest(std::uint64_t bytes) {
    all_.Update("forkd memory 1\n");
    all_.UpdateU64(bytes);
  }
  void Add(std::uint64_t number, absl::string_view block) {
    one_.Update(block);
    const Sha256Digest digest = one_.Finish();
    all_.UpdateU64(number);
    all_.Update(absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
  }
  Sha256Digest Finish() { return all_.Finish(); }

 private:
  Sha256 all_;
  Sha256 one_;
};

}  // namespace

absl::StatusOr<Sha256Digest> HashMemoryBlocking(int fd, std::uint64_t bytes, absl::string_view what) {
  BlocksDigest digest(bytes);
  FORKD_RETURN_IF_ERROR(ForEachBlock(fd, bytes, what, [&](std::uint64_t number, absl::string_view block) {
    digest.Add(number, block);
    return absl::OkStatus();
  }));
  return digest.Finish();
}

absl::StatusOr<Sha256Digest> CopyMemoryBlocking(int from, int to, std::uint64_t bytes, absl::string_view what) {
  if (::ftruncate(to, static_cast<off_t>(bytes)) != 0) { return ErrnoError(errno, absl::StrCat("set the size of the copy of ", what)); }
  const std::string copy = absl::StrCat("the copy of ", what);
  BlocksDigest digest(bytes);
  FORKD_RETURN_IF_ERROR(ForEachBlock(from, bytes, what, [&](std::uint64_t number, absl::string_view block) {
    digest.Add(number, block);
    return WriteDataPages(to, block, number * kMemoryBlockBytes, copy);
  }));
  return digest.Finish();
}

}  // namespace forkd::snapshot
