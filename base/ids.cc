#include "base/ids.h"

#include <cstdlib>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/error.h"

namespace forkd {
namespace {

bool IsTagCharacter(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_'; }

bool IsLowerHex(absl::string_view text) {
  for (const char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) { return false; }
  }
  return true;
}

absl::Status InvalidId(absl::string_view field, absl::string_view rule, absl::string_view text) {
  const std::string message = absl::StrCat(rule, "; got ", Quoted(text));
  return Error(absl::StatusCode::kInvalidArgument, Reason::kInvalidField, message).Meta("field", field).Field(field, message);
}

std::uint32_t RandomU32() {
  // Not a secret: it only keeps two names apart.
  std::random_device device;
  return device();
}

}  // namespace

absl::StatusOr<SnapshotTag> SnapshotTag::Parse(absl::string_view text, absl::string_view field) {
  bool well_formed = !text.empty() && text.size() <= kMaxLength;
  for (const char c : text) { well_formed = well_formed && IsTagCharacter(c); }
  if (!well_formed) { return InvalidId(field, "tag must be 1-64 chars, ASCII alnum or dash/underscore", text); }
  return SnapshotTag(std::string(text));
}

absl::StatusOr<SandboxId> SandboxId::Parse(absl::string_view text, absl::string_view field) {
  const auto well_formed = [text] {
    // 16 hex digits of seconds, 8 of sequence: more than any id ever has.
    if (text.size() > 3 + 16 + 1 + 8 || text.substr(0, 3) != "sb-") { return false; }
    const absl::string_view rest = text.substr(3);
    const std::size_t dash = rest.find('-');
    if (dash == absl::string_view::npos || dash == 0 || dash > 16) { return false; }
    const absl::string_view sequence = rest.substr(dash + 1);
    return IsLowerHex(rest.substr(0, dash)) && sequence.size() >= 4 && sequence.size() <= 8 && IsLowerHex(sequence);
  };
  if (!well_formed()) { return InvalidId(field, "sandbox id must be sb-<hex seconds>-<hex sequence>, lower case", text); }
  return SandboxId(std::string(text));
}

// Half of the four-digit space is left before ids grow a fifth digit.
SandboxIdGenerator::SandboxIdGenerator() : sequence_(RandomU32() & 0x7fff) {}

SandboxId SandboxIdGenerator::Next(std::int64_t now_unix) {
  const std::uint32_t sequence = sequence_.fetch_add(1, std::memory_order_relaxed);
  return SandboxId(absl::StrFormat("sb-%x-%04x", static_cast<std::uint64_t>(now_unix), sequence));
}

SnapshotTag DefaultBranchTag(const SandboxId& source, std::int64_t now_unix) {
  // An id of today has 16 characters, so this has 39. Cut the id, not the random end, should one ever be longer.
  const std::string tail = absl::StrFormat("-%d-%04x", now_unix, RandomU32() & 0xffff);
  const std::string head = absl::StrCat("branch-", source.str());
  return SnapshotTag(absl::StrCat(head.substr(0, SnapshotTag::kMaxLength - tail.size()), tail));
}

}  // namespace forkd
