// A failed call, told to a person: what, which reason, which argument, and what to do.
#ifndef FORKD_CLI_FAILURE_TEXT_H_
#define FORKD_CLI_FAILURE_TEXT_H_

#include <string>

#include <google/protobuf/descriptor.h>
#include <grpcpp/support/status.h>

namespace forkd::cli {

// Several lines, the first of which begins with "forkctl: ". `request` names the arguments that were at fault; may be null.
std::string FailureText(const grpc::Status& status, const google::protobuf::Descriptor* request, const std::string& address);

}  // namespace forkd::cli

#endif  // FORKD_CLI_FAILURE_TEXT_H_
