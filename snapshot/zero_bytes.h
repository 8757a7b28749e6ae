// Whether bytes are all zero.
#ifndef FORKD_SNAPSHOT_ZERO_BYTES_H_
#define FORKD_SNAPSHOT_ZERO_BYTES_H_

#include <cstring>

#include "absl/strings/string_view.h"

namespace forkd::snapshot {

// Runs at memcmp's speed: bytes that equal themselves shifted by one are all the same as the first. Most pages that are not zero differ early.
inline bool AllZero(absl::string_view bytes) {
  return bytes.empty() || (bytes[0] == 0 && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_ZERO_BYTES_H_
