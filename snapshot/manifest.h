// The manifest of a snapshot's folder: bytes in, a checked value out. Pure: no files, no clock.
#ifndef FORKD_SNAPSHOT_MANIFEST_H_
#define FORKD_SNAPSHOT_MANIFEST_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "snapshot/manifest.pb.h"

namespace forkd::snapshot {

inline constexpr int kFormatVersion = 1;
// Labels at their largest take 18 KiB, a machine record some 8 KiB: a manifest beyond this was not written by forkd.
inline constexpr std::size_t kMaxManifestBytes = 256 * 1024;

// 1 TiB of guest memory in pages of 4096 bytes. Keeps every product of counts and sizes in the format far away from 2^63.
inline constexpr std::uint64_t kMaxRootPages = std::uint64_t{1} << 28;

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kManifestDigestName[] = "manifest.sha256";
inline constexpr char kDeviceStateName[] = "device.state";
inline constexpr char kMemoryName[] = "memory.bin";
inline constexpr char kPagesName[] = "pages.bin";

// Schemes of File.digest.
inline constexpr char kSchemeSha256[] = "sha256";
inline constexpr char kSchemeBlocks[] = "sha256-blocks";
inline constexpr char kSchemeIndex[] = "sha256-index";

// Checks everything that can be checked of the manifest alone. INVALID_ARGUMENT INVALID_FIELD with the field's path in the message.
absl::Status ValidateManifest(const Manifest& manifest);

// FAILED_PRECONDITION SNAPSHOT_DAMAGED: not JSON, an unknown or misspelt field, a value out of range; the message names manifest.json and the
// field or place. FAILED_PRECONDITION SNAPSHOT_INCOMPATIBLE: another format version.
absl::StatusOr<Manifest> ParseManifest(absl::string_view json);

// The file's bytes. INVALID_ARGUMENT INVALID_FIELD as ValidateManifest: what could not be read back is not written.
absl::StatusOr<std::string> SerializeManifest(const Manifest& manifest);

// The entry of `name`, or null.
const File* FindFile(const Manifest& manifest, absl::string_view name);

}  // namespace forkd::snapshot

#endif  // FORKD_SNAPSHOT_MANIFEST_H_
