// Percent-decoding of URLs (RFC 3986, section 2.1; form encoding of queries). Pure.
#ifndef FORKD_SERVER_GATEWAY_PERCENT_CODING_H_
#define FORKD_SERVER_GATEWAY_PERCENT_CODING_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace forkd::gateway {

enum class SlashEscapes { kDecode, kKeep };

// Decodes each escape once. Empty where an escape is cut or not hexadecimal, or the result is not UTF-8.
std::optional<std::string> DecodePath(absl::string_view text, SlashEscapes slashes);
// The same for a query's key or value: "+" is a space.
std::optional<std::string> DecodeQuery(absl::string_view text);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_PERCENT_CODING_H_
