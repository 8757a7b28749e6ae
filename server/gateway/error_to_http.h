// Every error's way out over REST: its HTTP status, its words, its JSON. One table maps reason and method to status where that is not what the
// gRPC code alone says, because the forkd v1 REST contract wins. Pure; any thread.
#ifndef FORKD_SERVER_GATEWAY_ERROR_TO_HTTP_H_
#define FORKD_SERVER_GATEWAY_ERROR_TO_HTTP_H_

#include <string>
#include <vector>

#include <grpcpp/support/status.h>

#include "absl/strings/string_view.h"
#include "server/gateway/http_message.h"
#include "server/gateway/http_template.h"
#include "server/gateway/json_to_proto.h"

namespace forkd::gateway {

// The reply for a call that ended with `status`, not OK. `method`: full name, "forkd.v1.SandboxService.Exec". `path`: what the request's path was
// bound to. The body is {"error", "code", "reason", "message", "details", "request_id"}: `error` begins with the contract's words, `code` is the gRPC
// code's name. With Retry-After where the status is 429 or 503, WWW-Authenticate where it is 401.
HttpReply ErrorReply(const grpc::Status& status, absl::string_view method, const std::vector<HttpTemplate::Binding>& path,
                     absl::string_view request_id);

// The same JSON on one line, for a stream whose head has left already.
std::string ErrorLine(const grpc::Status& status, absl::string_view method, absl::string_view request_id);

// For a request that never became a call: 400, 404, 405, 413 and the like.
HttpReply RefusalReply(int http_status, absl::string_view text, absl::string_view request_id);
HttpReply RejectionReply(const Rejection& rejection, absl::string_view request_id);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_ERROR_TO_HTTP_H_
