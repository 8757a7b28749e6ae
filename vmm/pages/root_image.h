// The RAM of a root snapshot, in a memfd: while the parent VM warms up it is that VM's own memory; afterwards it is sealed and every child maps
// it MAP_PRIVATE, so that the kernel's copy-on-write is the fork.
#ifndef FORKD_VMM_PAGES_ROOT_IMAGE_H_
#define FORKD_VMM_PAGES_ROOT_IMAGE_H_

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"

namespace forkd::vmm {

// Owns the memfd; the memory is given back when this and every VMM that maps it are gone. Not thread-safe but for const methods.
class RootImage {
 public:
  // Empty memory of `bytes` (a positive multiple of the page size). `name` shows in /proc/PID/maps as "/memfd:forkd-NAME".
  static absl::StatusOr<RootImage> CreateBlocking(absl::string_view name, int64_t bytes);
  // Takes a descriptor that another process (a VMM being adopted) had of a root image. INVALID_ARGUMENT if it is not a memfd.
  static absl::StatusOr<RootImage> FromFd(UniqueFd fd);

  RootImage(RootImage&&) = default;
  RootImage& operator=(RootImage&&) = default;

  // After this nobody can write, shrink, grow or map it shared and writable, whatever descriptor they hold. The VMM that ran on it must be dead:
  // FAILED_PRECONDITION while a writable shared mapping exists. Idempotent.
  absl::Status SealBlocking();
  bool IsSealed() const;

  // Copies all of `source` (borrowed; a regular file) into this memory, skipping its holes. FAILED_PRECONDITION (SNAPSHOT_DAMAGED) if its size
  // is not size_bytes(); what it holds is the caller's to verify. Not after sealing.
  absl::Status FillFromFileBlocking(int source);
  // Writes all of this memory to `destination` (borrowed; a new regular file) from offset 0; pages of zeros become holes. No fsync.
  // RESOURCE_EXHAUSTED (DISK_FULL) if it does not fit.
  absl::Status WriteToFileBlocking(int destination) const;

  int fd() const { return fd_.get(); }
  int64_t size_bytes() const { return size_bytes_; }
  // The inode, by which two RootImages of one memory can be told to be the same, and its mappings be found in /proc/PID/maps.
  ino_t inode() const { return inode_; }

 private:
  RootImage(UniqueFd fd, int64_t size_bytes, ino_t inode) : fd_(std::move(fd)), size_bytes_(size_bytes), inode_(inode) {}
  UniqueFd fd_;
  int64_t size_bytes_ = 0;
  ino_t inode_ = 0;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_PAGES_ROOT_IMAGE_H_
