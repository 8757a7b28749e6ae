// A request's path, query and body, put into its message. Pure; any thread. Names, numbers and refusals are those of the forkd v1 REST contract,
// whose order of checks is: path, query, (content type, size), syntax, types.
//
// JSON names are the proto's; lowerCamelCase is understood too. Unknown names are ignored. 64-bit integers are JSON numbers (strings are taken
// as well). null means absent for `optional` and message fields and is refused elsewhere.
#ifndef FORKD_SERVER_GATEWAY_JSON_TO_PROTO_H_
#define FORKD_SERVER_GATEWAY_JSON_TO_PROTO_H_

#include <optional>
#include <string>
#include <vector>

#include <google/protobuf/message.h>

#include "absl/strings/string_view.h"
#include "server/gateway/http_template.h"

namespace forkd::gateway {

// Nesting of a body, as in the contract's JSON reader: deeper is a syntax error.
inline constexpr int kMaxJsonDepth = 128;

// Why a request does not become a message.
struct Rejection {
  int http_status = 400;
  std::string text;
  std::string field;  // path in proto names; empty: no single one
};

// Values of the path's variables. 400 where one does not fit its field.
std::optional<Rejection> BindPath(const std::vector<HttpTemplate::Binding>& bindings, google::protobuf::Message* request);

// `query`: what follows "?", undecoded; may be empty. Keys are field paths; the fields in `taken` (path variables, the body's field) are left
// alone, as unknown keys are. 400 where a value does not fit, or a key of a singular field comes twice.
std::optional<Rejection> BindQuery(absl::string_view query, const std::vector<std::string>& taken, google::protobuf::Message* request);

// The body into `field`, or into the whole message where `field` is nullptr; then also checks that the required fields that are not in `taken`
// were there. 400: no JSON (what follows the first value is ignored), or a number beyond what its rule allows; 422: a value of the wrong type, an
// unknown enum value, a missing field.
std::optional<Rejection> BindBody(absl::string_view body, const google::protobuf::FieldDescriptor* field, const std::vector<std::string>& taken,
                                  google::protobuf::Message* request);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_JSON_TO_PROTO_H_
