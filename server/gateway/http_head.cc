#include "server/gateway/http_head.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace forkd::gateway {
namespace {

bool IsTokenCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::string_view("!#$%&'*+-.^_`|~").find(c) != absl::string_view::npos;
}

bool IsToken(absl::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenCharacter); }

bool IsDigits(absl::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); });
}

// Visible ASCII, blanks, and bytes above 127 (obs-text).
bool IsFieldValue(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f); });
}

HeadError Bad(absl::string_view text) { return {400, std::string(text)}; }

std::optional<HeadError> CheckRequestLine(absl::string_view line, bool* http_1_1) {
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == absl::string_view::npos || first == last) { return Bad("malformed request line"); }
  const absl::string_view verb = line.substr(0, first);
  const absl::string_view target = line.substr(first + 1, last - first - 1);
  const absl::string_view version = line.substr(last + 1);
  if (!IsToken(verb)) { return Bad("malformed request line: method"); }
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    if (absl::StartsWith(version, "HTTP/")) { return HeadError{505, "only HTTP/1.1 and HTTP/1.0 are spoken here"}; }
    return Bad("malformed request line: version");
  }
  *http_1_1 = version == "HTTP/1.1";
  if (target.empty() || target[0] != '/') { return Bad("the request target must be a path"); }
  for (const char c : target) {
    // Stray controls, blanks, bytes above 127 and fragments have no place in a target.
    if (static_cast<unsigned char>(c) <= 0x20 || static_cast<unsigned char>(c) >= 0x7f || c == '#') { return Bad("the request target has a character that must be escaped"); }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::size_t> FindHeadEnd(absl::string_view bytes) {
  const std::size_t end = bytes.find("\r\n\r\n");
  if (end == absl::string_view::npos) { return std::nullopt; }
  return end + 4;
}

std::optional<HeadError> CheckUnfinishedHead(absl::string_view bytes, std::size_t from) {
  for (std::size_t i = from; i < bytes.size(); ++i) {
    if (bytes[i] == '\n' && (i == 0 || bytes[i - 1] != '\r')) { return Bad("a line ends with LF alone"); }
    if (bytes[i] == '\r' && i + 1 < bytes.size() && bytes[i + 1] != '\n') { return Bad("a CR stands without LF"); }
  }
  return std::nullopt;
}

std::optional<HeadError> CheckHead(absl::string_view bytes) {
  if (std::optional<HeadError> error = CheckUnfinishedHead(bytes)) { return error; }
  if (!absl::ConsumeSuffix(&bytes, "\r\n\r\n")) { return Bad("the head is not complete"); }
  std::size_t hosts = 0;
  std::size_t lengths = 0;
  std::size_t codings = 0;
  std::size_t count = 0;
  bool http_1_1 = true;
  bool first = true;
  while (true) {
    const std::size_t end = bytes.find("\r\n");
    const absl::string_view line = bytes.substr(0, end);
    if (first) {
      if (std::optional<HeadError> error = CheckRequestLine(line, &http_1_1)) { return error; }
      first = false;
    } else {
      if (++count > kMaxHeaderCount) { return HeadError{431, "too many headers"}; }
      if (line.empty() || line[0] == ' ' || line[0] == '\t') { return Bad("a header is folded over lines"); }
      const std::size_t colon = line.find(':');
      if (colon == absl::string_view::npos) { return Bad("a header has no colon"); }
      const absl::string_view name = line.substr(0, colon);
      const absl::string_view value = absl::StripAsciiWhitespace(line.substr(colon + 1));
      if (!IsToken(name)) { return Bad("a header's name is malformed"); }
      if (!IsFieldValue(line.substr(colon + 1))) { return Bad("a header's value has a control character"); }
      if (absl::EqualsIgnoreCase(name, "Host")) { ++hosts; }
      if (absl::EqualsIgnoreCase(name, "Content-Length")) {
        ++lengths;
        // 15 digits: far beyond any limit, far below overflow.
        if (!IsDigits(value) || value.size() > 15) { return Bad("Content-Length is not a number"); }
      }
      if (absl::EqualsIgnoreCase(name, "Transfer-Encoding")) {
        ++codings;
        if (!absl::EqualsIgnoreCase(value, "chunked")) { return HeadError{501, "no transfer coding but chunked is understood"}; }
      }
      if (absl::EqualsIgnoreCase(name, "Expect") && !absl::EqualsIgnoreCase(value, "100-continue")) {
        return HeadError{417, "no expectation but 100-continue can be met"};
      }
    }
    if (end == absl::string_view::npos) { break; }
    bytes.remove_prefix(end + 2);
  }
  if (lengths > 1) { return Bad("more than one Content-Length"); }
  if (codings > 1) { return Bad("more than one Transfer-Encoding"); }
  if (lengths > 0 && codings > 0) { return Bad("both Content-Length and Transfer-Encoding"); }
  if (codings > 0 && !http_1_1) { return Bad("HTTP/1.0 has no Transfer-Encoding"); }
  if (hosts > 1) { return Bad("more than one Host"); }
  if (hosts == 0 && http_1_1) { return Bad("Host is missing"); }
  return std::nullopt;
}

}  // namespace forkd::gateway
