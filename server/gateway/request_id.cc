#include "server/gateway/request_id.h"

#include <openssl/rand.h>

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace forkd::gateway {

std::string AcceptOrMakeRequestId(absl::string_view wanted) {
  const bool harmless = !wanted.empty() && wanted.size() <= 64 && std::all_of(wanted.begin(), wanted.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  });
  if (harmless) { return std::string(wanted); }
  std::array<unsigned char, 8> bytes{};
  RAND_bytes(bytes.data(), bytes.size());
  return absl::StrCat("rq-", absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())));
}

}  // namespace forkd::gateway
