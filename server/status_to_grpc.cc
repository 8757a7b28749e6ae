#include "server/status_to_grpc.h"

#include <string>

#include "absl/strings/cord.h"
#include "google/rpc/status.pb.h"

namespace forkd::server {
namespace {

// gRPC sends details as a header: beyond about 8 KiB peers drop the call.
constexpr std::size_t kMaxMessageBytes = 4096;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) { return grpc::Status::OK; }
  // The codes of absl and gRPC are the same numbers.
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const std::string message(status.message().substr(0, kMaxMessageBytes));
  google::rpc::Status details;
  details.set_code(static_cast<int>(code));
  details.set_message(message);
  status.ForEachPayload([&details](absl::string_view url, const absl::Cord& payload) {
    google::protobuf::Any* any = details.add_details();
    any->set_type_url(std::string(url));
    any->set_value(std::string(payload));
  });
  return grpc::Status(code, message, details.SerializeAsString());
}

}  // namespace forkd::server
