// How enum values are written outside gRPC (EnumNames of options.proto). Pure.
#ifndef FORKD_SERVER_GATEWAY_ENUM_TEXT_H_
#define FORKD_SERVER_GATEWAY_ENUM_TEXT_H_

#include <string>

#include <google/protobuf/descriptor.h>

#include "absl/strings/string_view.h"

namespace forkd::gateway {

// The value's short name ("ready"), or its full one where its enum has no short names.
std::string EnumText(const google::protobuf::EnumValueDescriptor* value);

// By short or full name, case mattering; nullptr: none.
const google::protobuf::EnumValueDescriptor* FindEnumValue(const google::protobuf::EnumDescriptor* type, absl::string_view text);

// Whether the enum has short names: then a number is not one of them.
bool HasShortNames(const google::protobuf::EnumDescriptor* type);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_ENUM_TEXT_H_
