// Checks a request against the rules that the contract's descriptors carry (options.proto: required, ranges, lengths, patterns), so that no
// method checks by hand what its proto already says.
#ifndef FORKD_SERVER_VALIDATE_H_
#define FORKD_SERVER_VALIDATE_H_

#include <google/protobuf/message.h>

#include "absl/status/status.h"

namespace forkd::server {

// INVALID_ARGUMENT INVALID_FIELD naming the first field, in the order of declaration, that breaks its rule; nested fields by path
// ("start.args[3]"). Beyond the rules: no string may hold a NUL byte, since it would be cut short somewhere below.
absl::Status ValidateRequest(const google::protobuf::Message& request);

}  // namespace forkd::server

#endif  // FORKD_SERVER_VALIDATE_H_
