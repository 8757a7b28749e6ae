#include "vmm/pages/root_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/mapping.h"
#include "base/page_set.h"
#include "base/status_macros.h"

namespace forkd::vmm {
namespace {

constexpr int kAllSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
// One copy_file_range or write covers at most this much: large enough that calls do not count, small enough to stay in the caches.
constexpr int64_t kChunkBytes = 1 << 20;

absl::Status CopyRange(int source, int destination, int64_t from, int64_t to, char* buffer) {
  while (from < to) {
    const ssize_t got = ::pread(source, buffer, static_cast<std::size_t>(std::min(kChunkBytes, to - from)), from);
    if (got < 0) { return ErrnoError(errno, absl::StrCat("read a memory image at offset ", from)); }
    if (got == 0) {
      return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotDamaged, absl::StrCat("the memory image became shorter than ", to, " bytes"));
    }
    for (ssize_t done = 0; done < got;) {
      const ssize_t put = ::pwrite(destination, buffer + done, static_cast<std::size_t>(got - done), from + done);
      if (put < 0) { return ErrnoError(errno, absl::StrCat("write a memory image at offset ", from + done)); }
      done += put;
    }
    from += got;
  }
  return absl::OkStatus();
}

bool IsZero(const char* page) {
  return page[0] == 0 && std::memcmp(page, page + 1, static_cast<std::size_t>(kPageBytes) - 1) == 0;
}

absl::Status WriteAll(int fd, const char* bytes, int64_t size, int64_t offset) {
  for (int64_t done = 0; done < size;) {
    const ssize_t put = ::pwrite(fd, bytes + done, static_cast<std::size_t>(std::min(kChunkBytes, size - done)), offset + done);
    if (put < 0) { return ErrnoError(errno, absl::StrCat("write a memory image at offset ", offset + done)); }
    done += put;
  }
  return absl::OkStatus();
}

// The next [begin, end) of `fd` that is not a hole, from `from` on; begin == size at the end.
struct Extent {
  int64_t begin;
  int64_t end;
};
absl::StatusOr<Extent> NextData(int fd, int64_t from, int64_t size) {
  const off_t begin = ::lseek(fd, from, SEEK_DATA);
  if (begin < 0) {
    if (errno == ENXIO) { return Extent{size, size}; }
    return ErrnoError(errno, "find data in a memory image");
  }
  const off_t end = ::lseek(fd, begin, SEEK_HOLE);
  if (end < 0) { return ErrnoError(errno, "find a hole in a memory image"); }
  return Extent{std::min<int64_t>(begin, size), std::min<int64_t>(end, size)};
}

}  // namespace

absl::StatusOr<RootImage> RootImage::CreateBlocking(absl::string_view name, int64_t bytes) {
  if (bytes <= 0 || bytes % kPageBytes != 0) { return InvalidField("bytes", absl::StrCat(bytes, " is not a positive multiple of ", kPageBytes)); }
  UniqueFd fd(::memfd_create(absl::StrCat("forkd-", name.substr(0, 200)).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) { return ErrnoError(errno, "create a memfd"); }
  if (::ftruncate(fd.get(), bytes) != 0) { return ErrnoError(errno, absl::StrCat("size a memfd to ", bytes, " bytes")); }
  return FromFd(std::move(fd));
}

absl::StatusOr<RootImage> RootImage::FromFd(UniqueFd fd) {
  struct stat info {};
  // Only a memfd answers F_GET_SEALS.
  if (::fcntl(fd.get(), F_GET_SEALS) < 0 || ::fstat(fd.get(), &info) != 0) { return InvalidField("fd", "the descriptor is not a memfd"); }
  return RootImage(std::move(fd), info.st_size, info.st_ino);
}

absl::Status RootImage::SealBlocking() {
  if (IsSealed()) { return absl::OkStatus(); }
  if (::fcntl(fd_.get(), F_ADD_SEALS, kAllSeals) == 0) { return absl::OkStatus(); }
  if (errno == EBUSY) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kVmmFailed, "the root image cannot be sealed: a process still maps it writable");
  }
  return ErrnoError(errno, "seal the root image");
}

bool RootImage::IsSealed() const { return (::fcntl(fd_.get(), F_GET_SEALS) & kAllSeals) == kAllSeals; }

absl::Status RootImage::FillFromFileBlocking(int source) {
  struct stat info {};
  if (::fstat(source, &info) != 0) { return ErrnoError(errno, "stat a memory image"); }
  if (info.st_size != size_bytes_) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotDamaged,
                 absl::StrCat("the memory image has ", info.st_size, " bytes, expected ", size_bytes_));
  }
  FORKD_ASSIGN_OR_RETURN(Mapping buffer, Mapping::Anonymous(kChunkBytes, Mapping::Prefault::kYes));
  for (int64_t from = 0; from < size_bytes_;) {
    FORKD_ASSIGN_OR_RETURN(const Extent extent, NextData(source, from, size_bytes_));
    FORKD_RETURN_IF_ERROR(CopyRange(source, fd_.get(), extent.begin, extent.end, buffer.data()));
    from = extent.end;
  }
  return absl::OkStatus();
}

absl::Status RootImage::WriteToFileBlocking(int destination) const {
  if (::ftruncate(destination, size_bytes_) != 0) { return ErrnoError(errno, "size a memory image file"); }
  FORKD_ASSIGN_OR_RETURN(const Mapping memory, Mapping::ReadOnly(fd_.get(), static_cast<std::size_t>(size_bytes_)));
  for (int64_t from = 0; from < size_bytes_;) {
    FORKD_ASSIGN_OR_RETURN(const Extent extent, NextData(fd_.get(), from, size_bytes_));
    // Runs of pages that are not zero; a guest zeroes many pages that it then does not use.
    int64_t at = extent.begin;
    while (at < extent.end) {
      while (at < extent.end && IsZero(memory.data() + at)) { at += kPageBytes; }
      int64_t run_end = at;
      while (run_end < extent.end && !IsZero(memory.data() + run_end)) { run_end += kPageBytes; }
      FORKD_RETURN_IF_ERROR(WriteAll(destination, memory.data() + at, run_end - at, at));
      at = run_end;
    }
    from = extent.end;
  }
  return absl::OkStatus();
}

}  // namespace forkd::vmm
