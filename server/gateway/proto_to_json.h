// Messages as the forkd v1 REST contract writes them: the proto's names, 64-bit integers as numbers, enums by their short names, bytes in base64,
// fields in the order of the proto. Fields without presence are always there; an absent `optional` one is left out, or null where its rules say
// `null_when_absent`. Pure; any thread.
#ifndef FORKD_SERVER_GATEWAY_PROTO_TO_JSON_H_
#define FORKD_SERVER_GATEWAY_PROTO_TO_JSON_H_

#include <string>

#include <google/protobuf/message.h>

namespace forkd::gateway {

// One line, no blanks. `field`: write its value alone (google.api.http's response_body); nullptr: the whole message.
std::string ProtoToJson(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor* field = nullptr);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_PROTO_TO_JSON_H_
