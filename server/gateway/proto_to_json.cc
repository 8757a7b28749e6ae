#include "server/gateway/proto_to_json.h"

#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include <google/protobuf/util/json_util.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/forkd/v1/options.pb.h"
#include "server/gateway/enum_text.h"
#include "server/gateway/json_tree.h"

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

using pb::FieldDescriptor;
using pb::Message;
using pb::Reflection;

JsonTree Number(double value) {
  if (std::isnan(value)) { return "NaN"; }
  if (std::isinf(value)) { return value < 0 ? "-Infinity" : "Infinity"; }
  return value;
}

// The shortest text that reads back as this float: 0.1f is 0.1, not 0.10000000149011612.
JsonTree Number(float value) {
  if (!std::isfinite(value)) { return Number(static_cast<double>(value)); }
  char text[64];
  const std::to_chars_result end = std::to_chars(text, text + sizeof(text), value);
  double shortest = value;
  std::from_chars(text, end.ptr, shortest);
  return shortest;
}

JsonTree EnumValue(const FieldDescriptor* field, int number) {
  const pb::EnumValueDescriptor* value = field->enum_type()->FindValueByNumber(number);
  // A newer server's value has no name here.
  if (value == nullptr) { return number; }
  return EnumText(value);
}

// index < 0: a singular field.
JsonTree Value(const Message& message, const FieldDescriptor* field, int index) {
  const Reflection* reflection = message.GetReflection();
  const bool one = index < 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: return one ? reflection->GetInt32(message, field) : reflection->GetRepeatedInt32(message, field, index);
    case FieldDescriptor::CPPTYPE_INT64: return one ? reflection->GetInt64(message, field) : reflection->GetRepeatedInt64(message, field, index);
    case FieldDescriptor::CPPTYPE_UINT32: return one ? reflection->GetUInt32(message, field) : reflection->GetRepeatedUInt32(message, field, index);
    case FieldDescriptor::CPPTYPE_UINT64: return one ? reflection->GetUInt64(message, field) : reflection->GetRepeatedUInt64(message, field, index);
    case FieldDescriptor::CPPTYPE_DOUBLE: return Number(one ? reflection->GetDouble(message, field) : reflection->GetRepeatedDouble(message, field, index));
    case FieldDescriptor::CPPTYPE_FLOAT: return Number(one ? reflection->GetFloat(message, field) : reflection->GetRepeatedFloat(message, field, index));
    case FieldDescriptor::CPPTYPE_BOOL: return one ? reflection->GetBool(message, field) : reflection->GetRepeatedBool(message, field, index);
    case FieldDescriptor::CPPTYPE_ENUM: return EnumValue(field, one ? reflection->GetEnumValue(message, field) : reflection->GetRepeatedEnumValue(message, field, index));
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string text = one ? reflection->GetString(message, field) : reflection->GetRepeatedString(message, field, index);
      return field->type() == FieldDescriptor::TYPE_BYTES ? absl::Base64Escape(text) : std::move(text);
    }
    case FieldDescriptor::CPPTYPE_MESSAGE: return ProtoToTree(one ? reflection->GetMessage(message, field) : reflection->GetRepeatedMessage(message, field, index));
  }
  return nullptr;
}

JsonTree MapValue(const Message& message, const FieldDescriptor* field) {
  // A map has no order of its own: sorted, the same message always reads the same.
  std::map<std::string, JsonTree> sorted;
  const int count = message.GetReflection()->FieldSize(message, field);
  for (int i = 0; i < count; ++i) {
    const Message& entry = message.GetReflection()->GetRepeatedMessage(message, field, i);
    const JsonTree key = Value(entry, field->message_type()->map_key(), -1);
    sorted[key.is_string() ? key.get<std::string>() : key.dump()] = Value(entry, field->message_type()->map_value(), -1);
  }
  JsonTree map = JsonTree::object();
  for (auto& [key, value] : sorted) { map[key] = std::move(value); }
  return map;
}

JsonTree FieldValue(const Message& message, const FieldDescriptor* field) {
  if (field->is_map()) { return MapValue(message, field); }
  if (!field->is_repeated()) { return Value(message, field, -1); }
  JsonTree list = JsonTree::array();
  const int count = message.GetReflection()->FieldSize(message, field);
  for (int i = 0; i < count; ++i) { list.push_back(Value(message, field, i)); }
  return list;
}

// Types with a JSON form of their own: protobuf knows it.
JsonTree WellKnown(const Message& message) {
  std::string text;
  if (!pb::util::MessageToJsonString(message, &text).ok()) { return nullptr; }
  JsonTree tree = JsonTree::parse(text, nullptr, /*allow_exceptions=*/false);
  if (tree.is_discarded()) { return nullptr; }
  // protobuf writes wrapped 64-bit integers as strings.
  const FieldDescriptor* value = message.GetDescriptor()->FindFieldByName("value");
  if (value != nullptr && message.GetDescriptor()->field_count() == 1 &&
      (value->cpp_type() == FieldDescriptor::CPPTYPE_INT64 || value->cpp_type() == FieldDescriptor::CPPTYPE_UINT64)) {
    return Value(message, value, -1);
  }
  return tree;
}

}  // namespace

JsonTree ProtoToTree(const Message& message) {
  const pb::Descriptor* type = message.GetDescriptor();
  if (absl::StartsWith(type->full_name(), "google.protobuf.") && type->full_name() != "google.protobuf.Empty") { return WellKnown(message); }
  JsonTree tree = JsonTree::object();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->has_presence() && !message.GetReflection()->HasField(message, field)) {
      if (field->options().GetExtension(v1::field).null_when_absent()) { tree[field->name()] = nullptr; }
      continue;
    }
    tree[field->name()] = FieldValue(message, field);
  }
  return tree;
}

std::string Dump(const JsonTree& tree) { return tree.dump(-1, ' ', /*ensure_ascii=*/false, JsonTree::error_handler_t::replace); }

std::string ProtoToJson(const Message& message, const FieldDescriptor* field) { return Dump(field == nullptr ? ProtoToTree(message) : FieldValue(message, field)); }

}  // namespace forkd::gateway
