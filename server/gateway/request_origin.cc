#include "server/gateway/request_origin.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace forkd::gateway {
namespace {

// Dotted quads of 127.0.0.0/8, each part one to three digits: no octal, no short forms, which some resolvers read differently.
bool IsLoopbackQuad(absl::string_view text) {
  int parts = 0;
  while (true) {
    const std::size_t dot = text.find('.');
    const absl::string_view part = text.substr(0, dot);
    if (part.empty() || part.size() > 3 || (part.size() > 1 && part[0] == '0')) { return false; }
    int value = 0;
    for (const char c : part) {
      if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) { return false; }
      value = value * 10 + (c - '0');
    }
    if (value > 255 || (parts == 0 && value != 127)) { return false; }
    ++parts;
    if (dot == absl::string_view::npos) { break; }
    text.remove_prefix(dot + 1);
  }
  return parts == 4;
}

}  // namespace

bool IsLocalHost(absl::string_view host, std::uint16_t port) {
  if (!absl::ConsumeSuffix(&host, absl::StrCat(":", port))) {
    // Without a port, 80 is meant; an IPv6 literal's own colons are inside its brackets.
    if (port != 80) { return false; }
  }
  return absl::EqualsIgnoreCase(host, "localhost") || host == "[::1]" || IsLoopbackQuad(host);
}

bool IsOwnOrigin(absl::string_view origin, std::uint16_t port) { return absl::ConsumePrefix(&origin, "http://") && IsLocalHost(origin, port); }

}  // namespace forkd::gateway
