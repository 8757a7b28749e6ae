#include "server/gateway/percent_coding.h"

#include "base/utf8.h"

namespace forkd::gateway {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') { return c - '0'; }
  if (c >= 'a' && c <= 'f') { return c - 'a' + 10; }
  if (c >= 'A' && c <= 'F') { return c - 'A' + 10; }
  return -1;
}

std::optional<std::string> Decode(absl::string_view text, SlashEscapes slashes, bool plus_is_space) {
  std::string decoded;
  decoded.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      decoded.push_back(' ');
    } else if (text[i] != '%') {
      decoded.push_back(text[i]);
    } else {
      if (text.size() - i < 3) { return std::nullopt; }
      const int high = HexDigit(text[i + 1]);
      const int low = HexDigit(text[i + 2]);
      if (high < 0 || low < 0) { return std::nullopt; }
      const char byte = static_cast<char>(high * 16 + low);
      if (byte == '/' && slashes == SlashEscapes::kKeep) {
        decoded.append(text.substr(i, 3).data(), 3);
      } else {
        decoded.push_back(byte);
      }
      i += 2;
    }
  }
  if (!IsUtf8(decoded)) { return std::nullopt; }
  return decoded;
}

}  // namespace

std::optional<std::string> DecodePath(absl::string_view text, SlashEscapes slashes) { return Decode(text, slashes, false); }

std::optional<std::string> DecodeQuery(absl::string_view text) { return Decode(text, SlashEscapes::kDecode, true); }

}  // namespace forkd::gateway
