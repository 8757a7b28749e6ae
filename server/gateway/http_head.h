// Strict rules for a request's head, checked before Beast's more lenient parser sees it, so that no proxy in front can read it differently
// (request smuggling). Sources: RFC 9112 (sections 2.2, 3, 5, 6), RFC 9110 (5.1, 5.6.2, 7.2). Pure; any thread.
#ifndef FORKD_SERVER_GATEWAY_HTTP_HEAD_H_
#define FORKD_SERVER_GATEWAY_HTTP_HEAD_H_

#include <cstddef>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace forkd::gateway {

inline constexpr std::size_t kMaxHeadBytes = 16 * 1024;
inline constexpr std::size_t kMaxHeaderCount = 100;

struct HeadError {
  int http_status = 400;
  std::string text;
};

// Where the head that `bytes` begins with ends: the offset after its empty line. Empty: not all of it is there. A bare LF does not end a line here,
// so a head without any CR LF never ends and runs into kMaxHeadBytes or CheckHead's refusal of what is there.
std::optional<std::size_t> FindHeadEnd(absl::string_view bytes);

// What can already be refused in an unfinished head: a bare LF or CR at or after the byte `from`.
std::optional<HeadError> CheckUnfinishedHead(absl::string_view bytes, std::size_t from = 0);

// `bytes` is a whole head, its empty line included. Empty: well formed and unambiguous. After an error the connection cannot be used any more: 400
// for anything malformed or ambiguous, 505 for other versions, 501 for other transfer codings, 417 for other expectations, 431 for too many headers.
std::optional<HeadError> CheckHead(absl::string_view bytes);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_HTTP_HEAD_H_
