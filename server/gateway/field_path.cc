#include "server/gateway/field_path.h"

#include <string>

#include "absl/strings/str_split.h"

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

// Deeper than any request of a sane contract; a query key is a stranger's.
constexpr std::size_t kMaxDepth = 16;

}  // namespace

const pb::FieldDescriptor* FindField(const pb::Descriptor* type, absl::string_view name) {
  const std::string key(name);
  const pb::FieldDescriptor* field = type->FindFieldByName(key);
  if (field != nullptr) { return field; }
  for (int i = 0; i < type->field_count(); ++i) {
    if (type->field(i)->json_name() == key) { return type->field(i); }
  }
  return nullptr;
}

std::vector<const pb::FieldDescriptor*> ResolveFieldPath(const pb::Descriptor* type, absl::string_view path) {
  std::vector<const pb::FieldDescriptor*> fields;
  for (const absl::string_view name : absl::StrSplit(path, '.')) {
    if (type == nullptr || fields.size() == kMaxDepth) { return {}; }
    const pb::FieldDescriptor* field = FindField(type, name);
    if (field == nullptr) { return {}; }
    fields.push_back(field);
    const bool goes_on = field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE && !field->is_repeated();
    type = goes_on ? field->message_type() : nullptr;
  }
  return fields;
}

}  // namespace forkd::gateway
