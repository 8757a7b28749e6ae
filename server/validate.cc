#include "server/validate.h"

#include <map>
#include <regex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/error.h"
#include "base/ids.h"
#include "base/status_macros.h"
#include "proto/forkd/v1/options.pb.h"

namespace forkd::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// The pattern of tags has its own parser, whose message clients know.
constexpr char kTagPattern[] = "[A-Za-z0-9_-]{1,64}";

// Compiling a std::regex costs more than matching one; there are a handful.
class PatternCache {
 public:
  bool Matches(const std::string& pattern, const std::string& text) {
    absl::MutexLock lock(&mutex_);
    auto it = compiled_.find(pattern);
    if (it == compiled_.end()) { it = compiled_.emplace(pattern, std::regex(pattern, std::regex::ECMAScript | std::regex::optimize)).first; }
    return std::regex_match(text, it->second);
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::regex> compiled_ ABSL_GUARDED_BY(mutex_);
};

PatternCache& Patterns() {
  static auto* cache = new PatternCache;
  return *cache;
}

absl::Status CheckText(const std::string& text, bool is_text, const v1::FieldRules& rules, const std::string& path) {
  if (rules.max_bytes() > 0 && static_cast<int64_t>(text.size()) > rules.max_bytes()) {
    return InvalidField(path, absl::StrCat("has ", text.size(), " bytes; at most ", rules.max_bytes()));
  }
  if (is_text && text.find('\0') != std::string::npos) { return InvalidField(path, "holds a NUL byte"); }
  if (!rules.pattern().empty() && !text.empty()) {
    if (rules.pattern() == kTagPattern) { return SnapshotTag::Parse(text, path).status(); }
    if (!Patterns().Matches(rules.pattern(), text)) { return InvalidField(path, absl::StrCat("is ", Quoted(text), "; it must match ", rules.pattern())); }
  }
  return absl::OkStatus();
}

absl::Status CheckNumber(int64_t value, const v1::FieldRules& rules, const std::string& path) {
  if (rules.has_min() && value < rules.min()) {
    return InvalidField(path, absl::StrCat(path.substr(path.rfind('.') + 1), " must be ≥ ", rules.min(), "; it is ", value));
  }
  if (rules.has_max() && value > rules.max()) {
    return InvalidField(path, absl::StrCat(path.substr(path.rfind('.') + 1), " must be ≤ ", rules.max(), "; it is ", value));
  }
  return absl::OkStatus();
}

absl::Status CheckMessage(const Message& message, const std::string& prefix);

// One value: of a singular field (index -1) or of a repeated one.
absl::Status CheckValue(const Message& message, const FieldDescriptor* field, int index, const v1::FieldRules& rules, const std::string& path) {
  const Reflection* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text = index < 0 ? reflection->GetString(message, field) : reflection->GetRepeatedString(message, field, index);
      return CheckText(text, field->type() == FieldDescriptor::TYPE_STRING, rules, path);
    }
    case FieldDescriptor::CPPTYPE_INT32:
      return CheckNumber(index < 0 ? reflection->GetInt32(message, field) : reflection->GetRepeatedInt32(message, field, index), rules, path);
    case FieldDescriptor::CPPTYPE_INT64:
      return CheckNumber(index < 0 ? reflection->GetInt64(message, field) : reflection->GetRepeatedInt64(message, field, index), rules, path);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return CheckMessage(index < 0 ? reflection->GetMessage(message, field) : reflection->GetRepeatedMessage(message, field, index), path);
    default: return absl::OkStatus();
  }
}

absl::Status CheckMap(const Message& message, const FieldDescriptor* field, const v1::FieldRules& rules, const std::string& path) {
  const Reflection* reflection = message.GetReflection();
  const FieldDescriptor* key = field->message_type()->map_key();
  const FieldDescriptor* value = field->message_type()->map_value();
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const Message& entry = reflection->GetRepeatedMessage(message, field, i);
    FORKD_RETURN_IF_ERROR(CheckValue(entry, key, -1, rules, absl::StrCat(path, ".key")));
    FORKD_RETURN_IF_ERROR(CheckValue(entry, value, -1, rules, absl::StrCat(path, ".value")));
  }
  return absl::OkStatus();
}

absl::Status CheckField(const Message& message, const FieldDescriptor* field, const std::string& prefix) {
  const Reflection* reflection = message.GetReflection();
  const v1::FieldRules& rules = field->options().GetExtension(v1::field);
  const std::string path = prefix.empty() ? field->name() : absl::StrCat(prefix, ".", field->name());
  if (rules.output_only()) { return absl::OkStatus(); }
  if (field->is_repeated()) {
    const int count = reflection->FieldSize(message, field);
    if (rules.required() && count == 0) { return InvalidField(path, absl::StrCat(field->name(), " must contain at least one element")); }
    if (rules.max_items() > 0 && count > rules.max_items()) { return InvalidField(path, absl::StrCat("has ", count, " elements; at most ", rules.max_items())); }
    if (field->is_map()) { return CheckMap(message, field, rules, path); }
    for (int i = 0; i < count; ++i) { FORKD_RETURN_IF_ERROR(CheckValue(message, field, i, rules, absl::StrCat(path, "[", i, "]"))); }
    return absl::OkStatus();
  }
  const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  const bool present = field->has_presence() ? reflection->HasField(message, field) : true;
  if (rules.required()) {
    const bool empty = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING ? reflection->GetString(message, field).empty() : !present;
    if (empty) {
      if (rules.pattern() == kTagPattern) { return SnapshotTag::Parse("", path).status(); }
      return InvalidField(path, "is required");
    }
  }
  if (!present) { return absl::OkStatus(); }
  // A number without presence that is zero was not given: nothing to check unless it is required.
  if (!field->has_presence() && !rules.required() && !reflection->HasField(message, field)) { return absl::OkStatus(); }
  if (is_message && !reflection->HasField(message, field)) { return absl::OkStatus(); }
  return CheckValue(message, field, -1, rules, path);
}

absl::Status CheckMessage(const Message& message, const std::string& prefix) {
  const google::protobuf::Descriptor* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) { FORKD_RETURN_IF_ERROR(CheckField(message, descriptor->field(i), prefix)); }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateRequest(const google::protobuf::Message& request) { return CheckMessage(request, ""); }

}  // namespace forkd::server
