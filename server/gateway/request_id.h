// Names of requests, in answers and logs.
#ifndef FORKD_SERVER_GATEWAY_REQUEST_ID_H_
#define FORKD_SERVER_GATEWAY_REQUEST_ID_H_

#include <string>

#include "absl/strings/string_view.h"

namespace forkd::gateway {

// `wanted`, if it is 1–64 letters, digits, `-`, `_` or `.` (it goes into headers and logs); else a new random one, "rq-" and 16 hexadecimal digits.
std::string AcceptOrMakeRequestId(absl::string_view wanted);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_REQUEST_ID_H_
