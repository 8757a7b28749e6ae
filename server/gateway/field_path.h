// Fields named by a dotted path, "start.id", as in path templates and query keys. Pure.
#ifndef FORKD_SERVER_GATEWAY_FIELD_PATH_H_
#define FORKD_SERVER_GATEWAY_FIELD_PATH_H_

#include <vector>

#include <google/protobuf/descriptor.h>

#include "absl/strings/string_view.h"

namespace forkd::gateway {

// The field of `type` with this name, as the proto spells it or in lowerCamelCase; nullptr: none.
const google::protobuf::FieldDescriptor* FindField(const google::protobuf::Descriptor* type, absl::string_view name);

// The fields from the outermost to the last; all but the last are singular messages. Empty: there is no such path.
std::vector<const google::protobuf::FieldDescriptor*> ResolveFieldPath(const google::protobuf::Descriptor* type, absl::string_view path);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_FIELD_PATH_H_
