// Whatever the bytes: a clear error, or a manifest that is written and read back as it is.
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/util/message_differencer.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "snapshot/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const google::protobuf::LogSilencer* const silent = new google::protobuf::LogSilencer;
  (void)silent;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<forkd::snapshot::Manifest> manifest = forkd::snapshot::ParseManifest(bytes);
  if (!manifest.ok()) {
    if (manifest.status().code() != absl::StatusCode::kFailedPrecondition) { std::abort(); }
    return 0;
  }
  const absl::StatusOr<std::string> written = forkd::snapshot::SerializeManifest(*manifest);
  if (!written.ok()) {
    // Only what JSON lets in and protobuf does not write (text that is not UTF-8) may stay behind.
    if (written.status().code() != absl::StatusCode::kInvalidArgument) { std::abort(); }
    return 0;
  }
  const absl::StatusOr<forkd::snapshot::Manifest> again = forkd::snapshot::ParseManifest(*written);
  if (!again.ok() || !google::protobuf::util::MessageDifferencer::Equals(*manifest, *again)) { std::abort(); }
  return 0;
}
