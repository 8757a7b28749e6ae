// absl::Status inside, grpc::Status with google.rpc.Status details outside (gRPC 1.51 has no conversion of its own).
#ifndef FORKD_SERVER_STATUS_TO_GRPC_H_
#define FORKD_SERVER_STATUS_TO_GRPC_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace forkd::server {

// The same code and message; the payloads become google.rpc.Status.details, in the binary error details of the gRPC status.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace forkd::server

#endif  // FORKD_SERVER_STATUS_TO_GRPC_H_
