// Any bytes as a body and as a query of two requests of the contract: a refusal has a status of 400 or 422 and words, anything else a message
// that serializes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "proto/forkd/v1/sandbox.pb.h"
#include "proto/forkd/v1/snapshot.pb.h"
#include "server/gateway/json_to_proto.h"

namespace {

void Check(const std::optional<forkd::gateway::Rejection>& rejection, const google::protobuf::Message& message) {
  if (rejection.has_value() && ((rejection->http_status != 400 && rejection->http_status != 422) || rejection->text.empty())) { std::abort(); }
  if (!rejection.has_value() && message.SerializeAsString().size() != message.ByteSizeLong()) { std::abort(); }
}

template <typename Message>
void Try(absl::string_view bytes) {
  Message body;
  Check(forkd::gateway::BindBody(bytes, nullptr, {}, &body), body);
  Message query;
  Check(forkd::gateway::BindQuery(bytes, {}, &query), query);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  Try<forkd::v1::CreateSnapshotRequest>(bytes);
  Try<forkd::v1::ExecStreamRequest>(bytes);
  Try<forkd::v1::BranchSandboxRequest>(bytes);
  return 0;
}
