// Names of snapshots and sandboxes, parsed once where outside bytes come in. A value of these types is always well formed, so it may become
// part of a path, an SQL row or a log line without another look.
#ifndef FORKD_BASE_IDS_H_
#define FORKD_BASE_IDS_H_

#include <atomic>
#include <compare>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd {

// 1 to 64 characters of [A-Za-z0-9_-]: the tag of a snapshot. Never starts with a dot, so a tag's folder never looks like a hidden one.
class SnapshotTag {
 public:
  static constexpr std::size_t kMaxLength = 64;

  // INVALID_ARGUMENT INVALID_FIELD; `field` is the request's field that carried it. The message begins with the sentence that clients of the
  // REST contract know.
  static absl::StatusOr<SnapshotTag> Parse(absl::string_view text, absl::string_view field = "tag");

  const std::string& str() const { return text_; }
  auto operator<=>(const SnapshotTag&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const SnapshotTag& tag) {
    return H::combine(std::move(h), tag.text_);
  }

 private:
  friend SnapshotTag DefaultBranchTag(const class SandboxId& source, std::int64_t now_unix);
  explicit SnapshotTag(std::string text) : text_(std::move(text)) {}
  std::string text_;
};

// `sb-<hex unix seconds>-<hex sequence>`, lower case, at least 4 digits of sequence: the id of a sandbox.
class SandboxId {
 public:
  // INVALID_ARGUMENT INVALID_FIELD, as above.
  static absl::StatusOr<SandboxId> Parse(absl::string_view text, absl::string_view field = "id");

  const std::string& str() const { return text_; }
  auto operator<=>(const SandboxId&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const SandboxId& id) {
    return H::combine(std::move(h), id.text_);
  }

 private:
  friend class SandboxIdGenerator;
  explicit SandboxId(std::string text) : text_(std::move(text)) {}
  std::string text_;
};

// Hands out ids. Within one daemon they never repeat; between a daemon and its successor in the same second they differ because each starts
// its sequence at a random place (and the registry's primary key refuses what chance still lets through). Thread-safe.
class SandboxIdGenerator {
 public:
  SandboxIdGenerator();
  explicit SandboxIdGenerator(std::uint32_t first_sequence) : sequence_(first_sequence) {}
  // `now_unix`: seconds since the epoch.
  SandboxId Next(std::int64_t now_unix);

 private:
  std::atomic<std::uint32_t> sequence_;
};

// The tag of a branch that was not given one: `branch-<sandbox id>-<unix seconds>-<4 random hex digits>`.
SnapshotTag DefaultBranchTag(const SandboxId& source, std::int64_t now_unix);

}  // namespace forkd

#endif  // FORKD_BASE_IDS_H_
