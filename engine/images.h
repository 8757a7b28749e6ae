// The host files that a microVM boots from: guest images built by guest/image, and files that a caller names. All lie below one folder, the
// image root, and are opened without following links; they must be regular files of root's that nobody else can write.
#ifndef FORKD_ENGINE_IMAGES_H_
#define FORKD_ENGINE_IMAGES_H_

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "base/unique_fd.h"

namespace forkd::engine {

// An open file and what identifies it.
struct HostFile {
  UniqueFd fd;         // read-only
  std::string path;    // absolute
  std::string sha256;  // 64 hex digits
  int64_t size_bytes = 0;
};

struct GuestImage {
  std::string name;
  std::string hash;  // of everything it was built from; empty for files named by a caller
  HostFile kernel;
  HostFile initrd;
  HostFile rootfs;
  std::string kernel_args;
  // Evaluated in the runner before the snapshot; empty: none.
  std::string warm_up;
  bool has_runner = false;
  int64_t memory_mib = 0;  // what it needs at least
};

struct ImageSummary {
  std::string name;
  std::string hash;
  int64_t size_bytes = 0;
};

// Blocking, any thread.
class GuestImages {
 public:
  // `root`: absolute path of the image root; need not exist yet.
  explicit GuestImages(std::string root);

  const std::string& root() const { return root_; }

  // The image `name` (validated as a tag is), every file checked against its SHA-256. NOT_FOUND IMAGE_UNKNOWN, which names the images there are
  // and how to build one; FAILED_PRECONDITION HOST_PATH_REFUSED for files that others could change.
  absl::StatusOr<GuestImage> OpenBlocking(absl::string_view name);
  // A caller's kernel and rootfs, with the agent's initramfs of the image `base`. Fields "kernel" and "rootfs": INVALID_ARGUMENT INVALID_FIELD
  // `kernel not found: P` or the reason for a refusal.
  absl::StatusOr<GuestImage> OpenHostFilesBlocking(absl::string_view kernel, absl::string_view rootfs);
  // The rootfs of a snapshot again. FAILED_PRECONDITION SNAPSHOT_DAMAGED if it is gone or has changed.
  absl::StatusOr<HostFile> ReopenBlocking(absl::string_view path, absl::string_view sha256);
  // Images that can be read, by name.
  std::vector<ImageSummary> ListBlocking();

 private:
  absl::StatusOr<HostFile> OpenFile(absl::string_view path);
  absl::StatusOr<std::string> DigestOf(int fd, absl::string_view path);

  const std::string root_;
  // A file's digest, by everything that changes when its content does: a fork must not hash 70 MiB again.
  using Signature = std::tuple<uint64_t, uint64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
  absl::Mutex mutex_;
  std::map<Signature, std::string> digests_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_IMAGES_H_
