#include "snapshot/manifest.h"

#include <google/protobuf/util/json_util.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/ids.h"
#include "base/page_set.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "snapshot/damage.h"

namespace forkd::snapshot {
namespace {

namespace json = google::protobuf::util;

constexpr int kMaxLabels = 64;
constexpr std::size_t kMaxLabelKeyBytes = 63;
constexpr std::size_t kMaxLabelValueBytes = 255;
// A QEMU machine record has 8 entries; a host's CPU flags are its longest value, some 2 KiB.
constexpr int kMaxMachineEntries = 64;
constexpr std::size_t kMaxMachineValueBytes = 16 * 1024;
constexpr int kMaxCaptured = 32;
constexpr std::size_t kMaxTextBytes = 256;
constexpr std::size_t kMaxPathBytes = 4096;  // PATH_MAX
constexpr int kMaxVcpus = 1024;

absl::Status Invalid(absl::string_view field, absl::string_view what) { return InvalidField(field, what); }

absl::Status CheckText(absl::string_view field, absl::string_view text, std::size_t max_bytes) {
  if (text.size() > max_bytes) { return Invalid(field, absl::StrCat("has ", text.size(), " bytes, the limit is ", max_bytes)); }
  if (text.find('\0') != absl::string_view::npos) { return Invalid(field, "has a NUL byte"); }
  if (!IsUtf8(text)) { return Invalid(field, absl::StrCat("is not UTF-8: ", Quoted(text))); }
  return absl::OkStatus();
}

absl::Status CheckDigest(absl::string_view field, absl::string_view text) {
  if (!Sha256FromHex(text).has_value()) { return Invalid(field, absl::StrCat("must be 64 lower-case hex digits; got ", Quoted(text))); }
  return absl::OkStatus();
}

absl::Status CheckRange(absl::string_view field, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value < min || value > max) { return Invalid(field, absl::StrCat("must be ", min, " to ", max, "; got ", value)); }
  return absl::OkStatus();
}

absl::Status CheckEmpty(absl::string_view field, absl::string_view text) {
  if (!text.empty()) { return Invalid(field, absl::StrCat("must be empty in a root; got ", Quoted(text))); }
  return absl::OkStatus();
}

absl::Status CheckTag(absl::string_view field, absl::string_view text) {
  const absl::Status status = SnapshotTag::Parse(text, field).status();
  return status.ok() ? status : Invalid(field, status.message());
}

absl::Status CheckHostFile(absl::string_view field, const HostFile& file) {
  FORKD_RETURN_IF_ERROR(CheckText(absl::StrCat(field, ".path"), file.path(), kMaxPathBytes));
  if (file.path().empty() || file.path()[0] != '/') {
    return Invalid(absl::StrCat(field, ".path"), absl::StrCat("must be absolute; got ", Quoted(file.path())));
  }
  return CheckDigest(absl::StrCat(field, ".sha256"), file.sha256());
}

absl::Status CheckLineage(const Manifest& m) {
  FORKD_RETURN_IF_ERROR(CheckTag("tag", m.tag()));
  FORKD_RETURN_IF_ERROR(CheckTag("root_tag", m.root_tag()));
  switch (m.kind()) {
    case ROOT:
      FORKD_RETURN_IF_ERROR(CheckEmpty("parent_tag", m.parent_tag()));
      FORKD_RETURN_IF_ERROR(CheckEmpty("root_memory_digest", m.root_memory_digest()));
      FORKD_RETURN_IF_ERROR(CheckEmpty("branched_from", m.branched_from()));
      if (m.root_tag() != m.tag()) { return Invalid("root_tag", "must be the own tag in a root"); }
      if (m.has_pages()) { return Invalid("pages", "must be absent in a root"); }
      return CheckRange("depth", m.depth(), 0, 0);
    case BRANCH:
      FORKD_RETURN_IF_ERROR(CheckTag("parent_tag", m.parent_tag()));
      FORKD_RETURN_IF_ERROR(CheckDigest("root_memory_digest", m.root_memory_digest()));
      if (const absl::Status source = SandboxId::Parse(m.branched_from()).status(); !source.ok()) { return Invalid("branched_from", source.message()); }
      if (m.root_tag() == m.tag()) { return Invalid("root_tag", "must be another snapshot's in a branch"); }
      if (m.parent_tag() == m.tag()) { return Invalid("parent_tag", "must be another snapshot's"); }
      if (!m.has_pages()) { return Invalid("pages", "is missing"); }
      FORKD_RETURN_IF_ERROR(CheckRange("pages.page_count", m.pages().page_count(), 0, m.memory_bytes() / kPageBytes));
      FORKD_RETURN_IF_ERROR(CheckRange("pages.zero_page_count", m.pages().zero_page_count(), 0, m.pages().page_count()));
      return CheckRange("depth", m.depth(), 1, 1'000'000);
    default: return Invalid("kind", "must be ROOT or BRANCH");
  }
}

// Exactly the files that the kind has, each with its one scheme.
absl::Status CheckFiles(const Manifest& m) {
  const absl::string_view memory_name = m.kind() == ROOT ? kMemoryName : kPagesName;
  std::set<std::string> seen;
  for (int i = 0; i < m.files_size(); ++i) {
    const File& file = m.files(i);
    const std::string field = absl::StrCat("files[", i, "]");
    absl::string_view scheme;
    if (file.name() == kDeviceStateName) {
      scheme = kSchemeSha256;
    } else if (file.name() == memory_name) {
      scheme = m.kind() == ROOT ? kSchemeBlocks : kSchemeIndex;
    } else {
      return Invalid(absl::StrCat(field, ".name"), absl::StrCat(Quoted(file.name()), " is no file of this kind of snapshot"));
    }
    if (!seen.insert(file.name()).second) { return Invalid(absl::StrCat(field, ".name"), absl::StrCat(Quoted(file.name()), " comes twice")); }
    if (file.scheme() != scheme) { return Invalid(absl::StrCat(field, ".scheme"), absl::StrCat("must be ", scheme, "; got ", Quoted(file.scheme()))); }
    FORKD_RETURN_IF_ERROR(CheckRange(absl::StrCat(field, ".size_bytes"), file.size_bytes(), 0, std::int64_t{1} << 42));
    FORKD_RETURN_IF_ERROR(CheckDigest(absl::StrCat(field, ".digest"), file.digest()));
    if (file.name() == kMemoryName && file.size_bytes() != m.memory_bytes()) {
      return Invalid(absl::StrCat(field, ".size_bytes"), absl::StrCat("must be memory_bytes, ", m.memory_bytes(), "; got ", file.size_bytes()));
    }
  }
  for (const absl::string_view name : {absl::string_view(kDeviceStateName), memory_name}) {
    if (seen.count(std::string(name)) == 0) { return Invalid("files", absl::StrCat(name, " is missing")); }
  }
  return absl::OkStatus();
}

absl::Status CheckMachine(const Manifest& m) {
  FORKD_RETURN_IF_ERROR(CheckRange("machine", m.machine_size(), 1, kMaxMachineEntries));
  for (const auto& [key, value] : m.machine()) {
    const std::string field = absl::StrCat("machine[", Quoted(key), "]");
    if (key.empty()) { return Invalid(field, "has an empty name"); }
    FORKD_RETURN_IF_ERROR(CheckText(field, key, kMaxLabelKeyBytes));
    FORKD_RETURN_IF_ERROR(CheckText(field, value, kMaxMachineValueBytes));
  }
  const auto vmm = m.machine().find("vmm");
  if (vmm == m.machine().end() || vmm->second.empty()) { return Invalid("machine.vmm", "is missing"); }
  FORKD_RETURN_IF_ERROR(CheckRange("shape.vcpus", m.shape().vcpus(), 1, kMaxVcpus));
  FORKD_RETURN_IF_ERROR(CheckRange("shape.memory_mib", m.shape().memory_mib(), 1, std::int64_t{1} << 20));
  FORKD_RETURN_IF_ERROR(CheckRange("memory_bytes", m.memory_bytes(), kPageBytes, static_cast<std::int64_t>(kMaxRootPages) * kPageBytes));
  if (m.memory_bytes() % kPageBytes != 0) { return Invalid("memory_bytes", absl::StrCat("must be whole pages of 4096; got ", m.memory_bytes())); }
  return absl::OkStatus();
}

absl::Status CheckTexts(const Manifest& m) {
  FORKD_RETURN_IF_ERROR(CheckText("image.name", m.image().name(), kMaxTextBytes));
  FORKD_RETURN_IF_ERROR(CheckText("image.hash", m.image().hash(), kMaxTextBytes));
  if (m.has_kernel()) { FORKD_RETURN_IF_ERROR(CheckHostFile("kernel", m.kernel())); }
  if (m.has_initrd()) { FORKD_RETURN_IF_ERROR(CheckHostFile("initrd", m.initrd())); }
  if (m.has_rootfs()) { FORKD_RETURN_IF_ERROR(CheckHostFile("rootfs", m.rootfs())); }
  FORKD_RETURN_IF_ERROR(CheckText("agent_version", m.agent_version(), kMaxTextBytes));
  // A guest without forkd's agent has no token.
  const bool token_ok = m.sync_token().empty() ||
                        (m.sync_token().size() == 32 && m.sync_token().find_first_not_of("0123456789abcdef") == std::string::npos);
  if (!token_ok) { return Invalid("sync_token", "must be empty or 32 lower-case hex digits"); }
  FORKD_RETURN_IF_ERROR(CheckRange("labels", m.labels_size(), 0, kMaxLabels));
  for (const auto& [key, value] : m.labels()) {
    const std::string field = absl::StrCat("labels[", Quoted(key), "]");
    if (key.empty()) { return Invalid(field, "has an empty name"); }
    FORKD_RETURN_IF_ERROR(CheckText(field, key, kMaxLabelKeyBytes));
    FORKD_RETURN_IF_ERROR(CheckText(field, value, kMaxLabelValueBytes));
  }
  FORKD_RETURN_IF_ERROR(CheckRange("captured", m.captured_size(), 0, kMaxCaptured));
  for (int i = 0; i < m.captured_size(); ++i) {
    FORKD_RETURN_IF_ERROR(CheckText(absl::StrCat("captured[", i, "]"), m.captured(i), kMaxTextBytes));
  }
  FORKD_RETURN_IF_ERROR(CheckRange("created_at_unix", m.created_at_unix(), 0, INT64_MAX));
  return CheckRange("pause_ms", m.pause_ms(), 0, INT64_MAX);
}

}  // namespace

absl::Status ValidateManifest(const Manifest& manifest) {
  FORKD_RETURN_IF_ERROR(CheckRange("format_version", manifest.format_version(), kFormatVersion, kFormatVersion));
  FORKD_RETURN_IF_ERROR(CheckMachine(manifest));
  FORKD_RETURN_IF_ERROR(CheckLineage(manifest));
  FORKD_RETURN_IF_ERROR(CheckFiles(manifest));
  return CheckTexts(manifest);
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view bytes) {
  if (bytes.size() > kMaxManifestBytes) {
    return Damaged(kManifestName, absl::StrCat("has ", bytes.size(), " bytes, the limit is ", kMaxManifestBytes));
  }
  const google::protobuf::StringPiece piece(bytes.data(), bytes.size());
  // The version first and leniently: another version's fields may be unknown here, and then the version is what is wrong.
  json::JsonParseOptions lenient;
  lenient.ignore_unknown_fields = true;
  json::JsonParseOptions strict;
  strict.ignore_unknown_fields = false;
  strict.case_insensitive_enum_parsing = false;
  Manifest manifest;
  if (json::JsonStringToMessage(piece, &manifest, lenient).ok() && manifest.format_version() != kFormatVersion) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotIncompatible,
                 absl::StrCat(kManifestName, ": format_version: is ", manifest.format_version(), ", this forkd reads ", kFormatVersion))
        .Meta("file", kManifestName);
  }
  manifest.Clear();
  const auto parsed = json::JsonStringToMessage(piece, &manifest, strict);
  if (!parsed.ok()) {
    const google::protobuf::StringPiece message = parsed.message();
    return Damaged(kManifestName, Quoted(absl::string_view(message.data(), message.size())));
  }
  if (const absl::Status valid = ValidateManifest(manifest); !valid.ok()) { return Damaged(kManifestName, valid.message()); }
  return manifest;
}

absl::StatusOr<std::string> SerializeManifest(const Manifest& manifest) {
  FORKD_RETURN_IF_ERROR(ValidateManifest(manifest));
  json::JsonPrintOptions options;
  options.add_whitespace = true;  // people read it
  options.preserve_proto_field_names = true;
  std::string bytes;
  if (const auto printed = json::MessageToJsonString(manifest, &bytes, options); !printed.ok()) {
    return InvalidField("manifest", Quoted(printed.ToString()));
  }
  if (bytes.size() > kMaxManifestBytes) {
    return InvalidField("manifest", absl::StrCat("has ", bytes.size(), " bytes, the limit is ", kMaxManifestBytes));
  }
  return bytes;
}

const File* FindFile(const Manifest& manifest, absl::string_view name) {
  for (const File& file : manifest.files()) {
    if (name == file.name()) { return &file; }
  }
  return nullptr;
}

}  // namespace forkd::snapshot
