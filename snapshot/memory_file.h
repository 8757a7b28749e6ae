// memory.bin: a root's RAM, byte for byte, sparse. Its digest (scheme sha256-blocks, docs/snapshot-format.md) does not depend on where the file
// has holes, and costs nothing where it has.
#ifndef FORKD_SNAPSHOT_MEMORY_FILE_H_
#define FORKD_SNAPSHOT_MEMORY_FILE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/sha256.h"

namespace forkd::snapshot {

inline constexpr std::uint64_t kMemoryBlockBytes = 64 * 1024;

// Both blocking, any thread; descriptors are borrowed. `what` names the source in errors. OUT_OF_RANGE if the source is shorter than `bytes`.

// Digest of the first `bytes` of `fd`.
absl::StatusOr<Sha256Digest> HashMemoryBlocking(int fd, std::uint64_t bytes, absl::string_view what);

// Copies the first `bytes` of `from` to `to`, which must be all zero where it has that size already (a new memfd or file); zero blocks are left
// as holes, and `to` gets the size `bytes`. Returns the digest of exactly the bytes that were written.
absl::StatusOr<Sha256Digest> CopyMemoryBlocking(int from, int to, std::uint64_t bytes, absl::string_view what);

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_MEMORY_FILE_H_
