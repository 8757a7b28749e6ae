// A request and its answer as the gateway's parts pass them on. Plain values.
#ifndef FORKD_SERVER_GATEWAY_HTTP_MESSAGE_H_
#define FORKD_SERVER_GATEWAY_HTTP_MESSAGE_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace forkd::gateway {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string verb;
  std::string path;  // undecoded, begins with "/"
  std::string query;  // undecoded, without "?"
  HttpHeaders headers;
  std::string body;
  std::string peer;  // "127.0.0.1:54321"
  std::string request_id;  // made for it, or the client's own if that is harmless

  // The first header of this name; empty: none, or an empty one.
  absl::string_view Header(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (absl::EqualsIgnoreCase(key, name)) { return value; }
    }
    return "";
  }
  bool HasHeader(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (absl::EqualsIgnoreCase(key, name)) { return true; }
    }
    return false;
  }
};

// Content-Length, Connection, Date and Transfer-Encoding are the server's own.
struct HttpReply {
  int status = 200;
  HttpHeaders headers;
  std::string body;
};

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_HTTP_MESSAGE_H_
