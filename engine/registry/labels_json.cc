#include "engine/registry/labels_json.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/utf8.h"

namespace forkd::engine {

absl::StatusOr<std::string> LabelsToJson(const Labels& labels) {
  if (labels.empty()) { return std::string("{}"); }  // the common case, without protobuf's reflection
  google::protobuf::Struct object;
  for (const auto& [key, value] : labels) {
    // Protobuf's JSON writer lets such bytes through.
    if (!IsUtf8(key) || !IsUtf8(value)) { return InvalidField("labels", absl::StrCat("label ", Quoted(key), " is not UTF-8")); }
    (*object.mutable_fields())[key].set_string_value(value);
  }
  std::string json;
  if (const auto status = google::protobuf::util::MessageToJsonString(object, &json); !status.ok()) {
    return InvalidField("labels", Quoted(status.ToString()));
  }
  return json;
}

absl::StatusOr<Labels> LabelsFromJson(absl::string_view json) {
  if (json == "{}") { return Labels(); }
  google::protobuf::Struct object;
  if (const auto status = google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, &object); !status.ok()) {
    return Error(absl::StatusCode::kInternal, Reason::kRegistry, absl::StrCat("registry: labels ", Quoted(json), ": ", Quoted(status.ToString())));
  }
  Labels labels;
  for (const auto& [key, value] : object.fields()) {
    if (value.kind_case() != google::protobuf::Value::kStringValue) {
      return Error(absl::StatusCode::kInternal, Reason::kRegistry, absl::StrCat("registry: label ", Quoted(key), " is not a string"));
    }
    labels.emplace(key, value.string_value());
  }
  return labels;
}

}  // namespace forkd::engine
