// Which method of the contract a request's verb and path call. Built once from the descriptors' google.api.http options (additional_bindings
// included), immutable afterwards; any thread. Knows no route by name.
#ifndef FORKD_SERVER_GATEWAY_ROUTE_TABLE_H_
#define FORKD_SERVER_GATEWAY_ROUTE_TABLE_H_

#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/gateway/http_template.h"

namespace forkd::gateway {

enum class BodyUse {
  kNone,  // not bound to anything: whatever is sent is ignored
  kMessage,  // the request message but for the path's fields (`body: "*"`)
  kField,  // one field of it
};

struct Route {
  const google::protobuf::MethodDescriptor* method = nullptr;
  std::string verb;  // "GET"
  HttpTemplate path;
  BodyUse body = BodyUse::kNone;
  const google::protobuf::FieldDescriptor* body_field = nullptr;
  // The response's field that is the answer; nullptr: all of it.
  const google::protobuf::FieldDescriptor* response_field = nullptr;

  // "/forkd.v1.SandboxService/Exec"
  std::string grpc_path;
};

struct RouteMatch {
  enum class Kind { kFound, kNotFound, kMethodNotAllowed, kInvalidPath };
  Kind kind = Kind::kNotFound;
  const Route* route = nullptr;  // kFound
  std::vector<HttpTemplate::Binding> bindings;  // kFound
  std::string allow;  // kMethodNotAllowed: value of the Allow header
};

class RouteTable {
 public:
  // INVALID_ARGUMENT: a template that does not parse, a path or body field that the request has not, a path variable that is repeated or a
  // message, two routes that match the same requests. The descriptors outlive the table.
  static absl::StatusOr<RouteTable> Build(const std::vector<const google::protobuf::MethodDescriptor*>& methods);

  // `path`: from the leading "/" to before the query, undecoded. HEAD is answered where GET is. No redirects: a trailing slash is another path.
  RouteMatch Find(absl::string_view verb, absl::string_view path) const;

  const std::vector<Route>& routes() const { return routes_; }

 private:
  std::vector<Route> routes_;  // the more specific ones first
};

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_ROUTE_TABLE_H_
