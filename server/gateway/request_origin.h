// Whether a request may come from where it says: a browser on the host must not drive a daemon that asks for no token (DNS rebinding, cross-site
// requests). Pure.
#ifndef FORKD_SERVER_GATEWAY_REQUEST_ORIGIN_H_
#define FORKD_SERVER_GATEWAY_REQUEST_ORIGIN_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace forkd::gateway {

// `host` is a loopback literal or "localhost", with `port` (which may be left out where it is 80).
bool IsLocalHost(absl::string_view host, std::uint16_t port);

// `origin` is this server's own page: "http://" and a host as above. "null" is not.
bool IsOwnOrigin(absl::string_view origin, std::uint16_t port);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_REQUEST_ORIGIN_H_
