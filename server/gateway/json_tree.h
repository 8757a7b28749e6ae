// Messages as JSON values, for code that puts them into larger ones. Everybody else includes proto_to_json.h, which is cheaper to compile.
#ifndef FORKD_SERVER_GATEWAY_JSON_TREE_H_
#define FORKD_SERVER_GATEWAY_JSON_TREE_H_

#include <string>

#include <google/protobuf/message.h>
#include <nlohmann/json.hpp>

namespace forkd::gateway {

using JsonTree = nlohmann::ordered_json;

JsonTree ProtoToTree(const google::protobuf::Message& message);
// Bytes that are not UTF-8 become U+FFFD.
std::string Dump(const JsonTree& tree);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_JSON_TREE_H_
