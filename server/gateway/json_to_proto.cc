#include "server/gateway/json_to_proto.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <utility>

#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "proto/forkd/v1/options.pb.h"
#include "server/gateway/enum_text.h"
#include "server/gateway/field_path.h"
#include "server/gateway/percent_coding.h"

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

using Json = nlohmann::json;
using pb::FieldDescriptor;

constexpr char kSyntaxWords[] = "Failed to parse the request body as JSON: ";
constexpr char kTypeWords[] = "Failed to deserialize the JSON body into the target type: ";
constexpr char kQueryWords[] = "Failed to deserialize query string: ";

// Builds a value of at most kMaxJsonDepth levels. nlohmann's own builder has no bound of depth.
class BoundedBuilder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t&) override { return Put(value); }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return Open(Json::object()); }
  bool start_array(std::size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& value) override {
    key_ = std::move(value);
    if (open_.back()->contains(key_)) { return Complain(absl::StrCat("duplicate field `", key_, "`")); }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error …": the words after the bracket are for people.
    const absl::string_view what = error.what();
    const std::size_t bracket = what.find("] ");
    return Complain(bracket == absl::string_view::npos ? absl::StrCat("at byte ", position) : std::string(what.substr(bracket + 2)));
  }

  Json Take() { return std::move(root_); }
  const std::string& complaint() const { return complaint_; }

 private:
  bool Complain(std::string text) {
    if (complaint_.empty()) { complaint_ = std::move(text); }
    return false;
  }
  Json* Place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& slot = parent[key_];
    slot = std::move(value);
    return &slot;
  }
  bool Put(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(Json value) {
    if (open_.size() == kMaxJsonDepth) { return Complain("recursion limit exceeded"); }
    // Stays valid: nothing is added to a container while one inside it is open.
    open_.push_back(Place(std::move(value)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  std::string complaint_;
};

std::optional<Rejection> WrongType(const std::string& path, absl::string_view what) {
  return Rejection{422, absl::StrCat(kTypeWords, path.empty() ? "" : path, path.empty() ? "" : ": ", what), path};
}

std::string Described(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::boolean: return absl::StrCat("boolean `", value.get<bool>() ? "true" : "false", "`");
    case Json::value_t::number_integer: return absl::StrCat("integer `", value.get<std::int64_t>(), "`");
    case Json::value_t::number_unsigned: return absl::StrCat("integer `", value.get<std::uint64_t>(), "`");
    case Json::value_t::number_float: return absl::StrCat("floating point `", value.get<double>(), "`");
    case Json::value_t::string: return absl::StrCat("string \"", absl::Utf8SafeCEscape(value.get_ref<const std::string&>().substr(0, 80)), "\"");
    case Json::value_t::array: return "sequence";
    default: return "map";
  }
}

std::optional<Rejection> InvalidType(const std::string& path, const Json& value, absl::string_view expected) {
  return WrongType(path, absl::StrCat("invalid type: ", Described(value), ", expected ", expected));
}

const v1::FieldRules& RulesOf(const FieldDescriptor* field) { return field->options().GetExtension(v1::field); }

// Where a field's values go: the field itself, or one more element of it.
class Sink {
 public:
  Sink(pb::Message* message, const FieldDescriptor* field) : message_(message), field_(field), reflection_(message->GetReflection()) {}
  // clang-format off
  void Int32(std::int32_t v) { field_->is_repeated() ? reflection_->AddInt32(message_, field_, v) : reflection_->SetInt32(message_, field_, v); }
  void Int64(std::int64_t v) { field_->is_repeated() ? reflection_->AddInt64(message_, field_, v) : reflection_->SetInt64(message_, field_, v); }
  void UInt32(std::uint32_t v) { field_->is_repeated() ? reflection_->AddUInt32(message_, field_, v) : reflection_->SetUInt32(message_, field_, v); }
  void UInt64(std::uint64_t v) { field_->is_repeated() ? reflection_->AddUInt64(message_, field_, v) : reflection_->SetUInt64(message_, field_, v); }
  void Double(double v) { field_->is_repeated() ? reflection_->AddDouble(message_, field_, v) : reflection_->SetDouble(message_, field_, v); }
  void Float(float v) { field_->is_repeated() ? reflection_->AddFloat(message_, field_, v) : reflection_->SetFloat(message_, field_, v); }
  void Bool(bool v) { field_->is_repeated() ? reflection_->AddBool(message_, field_, v) : reflection_->SetBool(message_, field_, v); }
  void String(std::string v) { field_->is_repeated() ? reflection_->AddString(message_, field_, std::move(v)) : reflection_->SetString(message_, field_, std::move(v)); }
  void Enum(int v) { field_->is_repeated() ? reflection_->AddEnumValue(message_, field_, v) : reflection_->SetEnumValue(message_, field_, v); }
  pb::Message* Message() { return field_->is_repeated() ? reflection_->AddMessage(message_, field_) : reflection_->MutableMessage(message_, field_); }
  // clang-format on

 private:
  pb::Message* const message_;
  const FieldDescriptor* const field_;
  const pb::Reflection* const reflection_;
};

// A number that JSON can say and the field's type cannot: the rule's words where it has a bound, as the daemon would say them.
std::optional<Rejection> OutOfRange(const FieldDescriptor* field, const std::string& path, const std::string& value) {
  const v1::FieldRules& rules = RulesOf(field);
  if (rules.has_max()) { return Rejection{400, absl::StrCat(field->name(), " must be ≤ ", rules.max(), "; it is ", value), path}; }
  return WrongType(path, absl::StrCat("invalid value: integer `", value, "`, expected a number that fits"));
}

// An integer within [lowest, highest], of JSON or, for 64 bits, of a string.
template <typename T>
std::optional<Rejection> ReadInteger(const FieldDescriptor* field, const Json& value, const std::string& path, T* result) {
  constexpr bool kWide = sizeof(T) == 8;
  const bool never_negative = std::is_unsigned_v<T> || (RulesOf(field).has_min() && RulesOf(field).min() >= 0);
  const absl::string_view expected = never_negative ? (kWide ? "u64" : "u32") : (kWide ? "i64" : "i32");
  if (kWide && value.is_string()) {
    if (!absl::SimpleAtoi(value.get_ref<const std::string&>(), result)) { return InvalidType(path, value, expected); }
    return std::nullopt;
  }
  if (value.is_number_unsigned()) {
    const std::uint64_t number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(std::numeric_limits<T>::max())) { return OutOfRange(field, path, absl::StrCat(number)); }
    *result = static_cast<T>(number);
    return std::nullopt;
  }
  if (!value.is_number_integer()) { return InvalidType(path, value, expected); }
  const std::int64_t number = value.get<std::int64_t>();  // nlohmann has non-negative ones as unsigned
  if (number < 0 && never_negative) { return WrongType(path, absl::StrCat("invalid value: integer `", number, "`, expected ", expected)); }
  if constexpr (std::is_signed_v<T>) {
    if (number < static_cast<std::int64_t>(std::numeric_limits<T>::min())) {
      return WrongType(path, absl::StrCat("invalid value: integer `", number, "`, expected ", expected));
    }
  }
  *result = static_cast<T>(number);
  return std::nullopt;
}

std::optional<Rejection> ReadDouble(const Json& value, const std::string& path, double* result) {
  if (value.is_number()) {
    *result = value.get<double>();
    return std::nullopt;
  }
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    if (text == "NaN" || text == "Infinity" || text == "-Infinity") {
      *result = text == "NaN" ? std::numeric_limits<double>::quiet_NaN() : (text[0] == '-' ? -HUGE_VAL : HUGE_VAL);
      return std::nullopt;
    }
  }
  return InvalidType(path, value, "a number");
}

// Types with a JSON form of their own (Timestamp, Duration, wrappers, Struct, Any …): protobuf knows it.
bool HasOwnJsonForm(const pb::Descriptor* type) { return absl::StartsWith(type->full_name(), "google.protobuf.") && type->full_name() != "google.protobuf.Empty"; }

std::optional<Rejection> ReadMessage(const Json& value, const std::string& path, pb::Message* message);

std::string ExpectedVariants(const pb::EnumDescriptor* type) {
  std::vector<std::string> names;
  // The value 0 is "not given".
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->number() != 0 || !HasShortNames(type)) { names.push_back(absl::StrCat("`", EnumText(type->value(i)), "`")); }
  }
  return absl::StrJoin(names, ", ");
}

std::optional<Rejection> ReadEnum(const FieldDescriptor* field, const Json& value, const std::string& path, Sink* sink) {
  if (value.is_number_integer() && !HasShortNames(field->enum_type())) {
    std::int32_t number = 0;
    if (std::optional<Rejection> rejection = ReadInteger(field, value, path, &number)) { return rejection; }
    sink->Enum(number);
    return std::nullopt;
  }
  if (!value.is_string()) { return InvalidType(path, value, "a string"); }
  const std::string& text = value.get_ref<const std::string&>();
  const pb::EnumValueDescriptor* found = FindEnumValue(field->enum_type(), text);
  if (found == nullptr) {
    return WrongType(path, absl::StrCat("unknown variant `", absl::Utf8SafeCEscape(text.substr(0, 80)), "`, expected one of ", ExpectedVariants(field->enum_type())));
  }
  sink->Enum(found->number());
  return std::nullopt;
}

// One value: of a singular field, or one more element.
std::optional<Rejection> ReadValue(const FieldDescriptor* field, const Json& value, const std::string& path, pb::Message* message) {
  Sink sink(message, field);
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      std::int32_t number = 0;
      if (std::optional<Rejection> rejection = ReadInteger(field, value, path, &number)) { return rejection; }
      sink.Int32(number);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      std::int64_t number = 0;
      if (std::optional<Rejection> rejection = ReadInteger(field, value, path, &number)) { return rejection; }
      sink.Int64(number);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      std::uint32_t number = 0;
      if (std::optional<Rejection> rejection = ReadInteger(field, value, path, &number)) { return rejection; }
      sink.UInt32(number);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      std::uint64_t number = 0;
      if (std::optional<Rejection> rejection = ReadInteger(field, value, path, &number)) { return rejection; }
      sink.UInt64(number);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT: {
      double number = 0;
      if (std::optional<Rejection> rejection = ReadDouble(value, path, &number)) { return rejection; }
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
        sink.Double(number);
        return std::nullopt;
      }
      if (std::isfinite(number) && std::abs(number) > std::numeric_limits<float>::max()) { return InvalidType(path, value, "a number that fits"); }
      sink.Float(static_cast<float>(number));
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!value.is_boolean()) { return InvalidType(path, value, "a boolean"); }
      sink.Bool(value.get<bool>());
      return std::nullopt;
    case FieldDescriptor::CPPTYPE_ENUM: return ReadEnum(field, value, path, &sink);
    case FieldDescriptor::CPPTYPE_STRING: {
      if (!value.is_string()) { return InvalidType(path, value, "a string"); }
      const std::string& text = value.get_ref<const std::string&>();
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        sink.String(text);
        return std::nullopt;
      }
      std::string bytes;
      if (!absl::Base64Unescape(text, &bytes) && !absl::WebSafeBase64Unescape(text, &bytes)) { return WrongType(path, "invalid value: expected base64"); }
      sink.String(std::move(bytes));
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE: return ReadMessage(value, path, sink.Message());
  }
  return WrongType(path, "this type cannot be given as JSON");
}

// The key of a map's entry: JSON has only strings there.
std::optional<Rejection> ReadMapKey(const FieldDescriptor* key, const std::string& text, const std::string& path, pb::Message* entry) {
  if (key->cpp_type() == FieldDescriptor::CPPTYPE_STRING) { return ReadValue(key, text, path, entry); }
  if (key->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
    if (text != "true" && text != "false") { return InvalidType(path, text, "a boolean"); }
    return ReadValue(key, text == "true", path, entry);
  }
  std::int64_t number = 0;
  std::uint64_t large = 0;
  if (absl::SimpleAtoi(text, &large)) { return ReadValue(key, large, path, entry); }
  if (absl::SimpleAtoi(text, &number)) { return ReadValue(key, number, path, entry); }
  return InvalidType(path, text, "an integer");
}

std::optional<Rejection> ReadField(const FieldDescriptor* field, const Json& value, const std::string& path, pb::Message* message) {
  if (field->is_map()) {
    if (!value.is_object()) { return InvalidType(path, value, "a map"); }
    for (const auto& [key, element] : value.items()) {
      const std::string element_path = absl::StrCat(path, ".", key.substr(0, 80));
      // Entries are added at the end of the field; the map takes them over when it is next read. JSON keys are unique, so no entry hides another.
      pb::Message* entry = message->GetReflection()->AddMessage(message, field);
      if (std::optional<Rejection> rejection = ReadMapKey(field->message_type()->map_key(), key, element_path, entry)) { return rejection; }
      if (std::optional<Rejection> rejection = ReadValue(field->message_type()->map_value(), element, element_path, entry)) { return rejection; }
    }
    return std::nullopt;
  }
  if (field->is_repeated()) {
    if (!value.is_array()) { return InvalidType(path, value, "a sequence"); }
    std::size_t index = 0;
    for (const Json& element : value) {
      if (std::optional<Rejection> rejection = ReadValue(field, element, absl::StrCat(path, "[", index++, "]"), message)) { return rejection; }
    }
    return std::nullopt;
  }
  const bool null_is_a_value = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && field->message_type()->full_name() == "google.protobuf.Value";
  if (value.is_null() && field->has_presence() && !null_is_a_value) { return std::nullopt; }
  if (field->real_containing_oneof() != nullptr && message->GetReflection()->HasOneof(*message, field->real_containing_oneof())) {
    return WrongType(path, absl::StrCat("more than one of `", field->real_containing_oneof()->name(), "` is given"));
  }
  return ReadValue(field, value, path, message);
}

std::optional<Rejection> ReadMessage(const Json& value, const std::string& path, pb::Message* message) {
  const pb::Descriptor* type = message->GetDescriptor();
  if (HasOwnJsonForm(type)) {
    const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    const pb::util::Status parsed = pb::util::JsonStringToMessage(text, message);
    if (!parsed.ok()) { return WrongType(path, absl::StrCat("invalid value for ", type->full_name())); }
    return std::nullopt;
  }
  if (!value.is_object()) { return InvalidType(path, value, absl::StrCat("struct ", type->name())); }
  std::set<const FieldDescriptor*> seen;
  for (const auto& [name, element] : value.items()) {
    const FieldDescriptor* field = FindField(type, name);
    if (field == nullptr) { continue; }
    if (!seen.insert(field).second) { return WrongType(path, absl::StrCat("duplicate field `", field->name(), "`")); }
    if (std::optional<Rejection> rejection = ReadField(field, element, path.empty() ? field->name() : absl::StrCat(path, ".", field->name()), message)) {
      return rejection;
    }
  }
  return std::nullopt;
}

// A value of a path or query, whose text stands for any type.
std::optional<Rejection> ReadText(const FieldDescriptor* field, const std::string& text, const std::string& path, absl::string_view words,
                                  pb::Message* message) {
  const auto refuse = [&](absl::string_view what) { return Rejection{400, absl::StrCat(words, what), path}; };
  Json value = text;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      if (text != "true" && text != "false") { return refuse("provided string was not `true` or `false`"); }
      value = text == "true";
      break;
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT64: {
      std::int64_t number = 0;
      std::uint64_t large = 0;
      if (absl::SimpleAtoi(text, &large)) {
        value = large;
      } else if (absl::SimpleAtoi(text, &number)) {
        value = number;
      } else {
        return refuse(absl::StrCat(path, ": invalid digit found in string"));
      }
      break;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT: {
      double number = 0;
      if (!absl::SimpleAtod(text, &number)) { return refuse(absl::StrCat(path, ": invalid float literal")); }
      if (std::isfinite(number)) { value = number; }
      break;
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      std::int32_t number = 0;
      if (!HasShortNames(field->enum_type()) && absl::SimpleAtoi(text, &number)) { value = number; }
      break;
    }
    case FieldDescriptor::CPPTYPE_STRING: break;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (!HasOwnJsonForm(field->message_type())) { return refuse(absl::StrCat(path, ": is a message, not a value")); }
      // Wrappers of numbers and bools have them bare.
      if (const FieldDescriptor* inner = field->message_type()->FindFieldByName("value");
          inner != nullptr && field->message_type()->field_count() == 1 && inner->cpp_type() != FieldDescriptor::CPPTYPE_STRING) {
        Json bare = Json::parse(text, nullptr, false);
        if (!bare.is_discarded() && bare.is_primitive()) { value = std::move(bare); }
      }
      break;
  }
  std::optional<Rejection> rejection = ReadValue(field, value, path, message);
  if (rejection.has_value() && rejection->http_status == 422) {
    absl::string_view what = rejection->text;
    absl::ConsumePrefix(&what, kTypeWords);
    return refuse(what);
  }
  return rejection;
}

// The message that holds the last field of `fields`.
pb::Message* Holder(const std::vector<const FieldDescriptor*>& fields, pb::Message* message) {
  for (std::size_t i = 0; i + 1 < fields.size(); ++i) { message = message->GetReflection()->MutableMessage(message, fields[i]); }
  return message;
}

std::string ProtoPath(const std::vector<const FieldDescriptor*>& fields) {
  std::vector<std::string> names;
  for (const FieldDescriptor* field : fields) { names.push_back(field->name()); }
  return absl::StrJoin(names, ".");
}

}  // namespace

std::optional<Rejection> BindPath(const std::vector<HttpTemplate::Binding>& bindings, pb::Message* request) {
  for (const HttpTemplate::Binding& binding : bindings) {
    const std::vector<const FieldDescriptor*> fields = ResolveFieldPath(request->GetDescriptor(), binding.field_path);
    if (fields.empty()) { return Rejection{400, absl::StrCat("Invalid URL: ", binding.field_path), binding.field_path}; }
    pb::Message* holder = Holder(fields, request);
    holder->GetReflection()->ClearField(holder, fields.back());
    if (std::optional<Rejection> rejection = ReadText(fields.back(), binding.value, binding.field_path, "Invalid URL: ", holder)) { return rejection; }
  }
  return std::nullopt;
}

std::optional<Rejection> BindQuery(absl::string_view query, const std::vector<std::string>& taken, pb::Message* request) {
  if (query.empty()) { return std::nullopt; }
  std::set<std::string> seen;
  for (const absl::string_view pair : absl::StrSplit(query, '&', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(pair, absl::MaxSplits('=', 1));
    const std::optional<std::string> key = DecodeQuery(parts.first);
    const std::optional<std::string> value = DecodeQuery(parts.second);
    if (!key.has_value() || !value.has_value()) { return Rejection{400, absl::StrCat(kQueryWords, "Invalid UTF-8 or a broken escape"), ""}; }
    const std::vector<const FieldDescriptor*> fields = ResolveFieldPath(request->GetDescriptor(), *key);
    if (fields.empty()) { continue; }
    const std::string path = ProtoPath(fields);
    const bool is_taken = std::any_of(taken.begin(), taken.end(), [&path](const std::string& other) {
      return path == other || absl::StartsWith(path, absl::StrCat(other, "."));
    });
    if (is_taken) { continue; }
    const FieldDescriptor* field = fields.back();
    if (field->is_map()) { return Rejection{400, absl::StrCat(kQueryWords, path, ": maps cannot be given here"), path}; }
    if (!field->is_repeated() && !seen.insert(path).second) { return Rejection{400, absl::StrCat(kQueryWords, "duplicate field `", path, "`"), path}; }
    pb::Message* holder = Holder(fields, request);
    if (std::optional<Rejection> rejection = ReadText(field, *value, path, kQueryWords, holder)) { return rejection; }
  }
  return std::nullopt;
}

std::optional<Rejection> BindBody(absl::string_view body, const FieldDescriptor* field, const std::vector<std::string>& taken, pb::Message* request) {
  BoundedBuilder builder;
  const bool parsed = Json::sax_parse(body.begin(), body.end(), &builder, nlohmann::detail::input_format_t::json, /*strict=*/false);
  if (!parsed) { return Rejection{400, absl::StrCat(kSyntaxWords, builder.complaint()), ""}; }
  const Json value = builder.Take();
  if (field != nullptr) { return ReadField(field, value, field->name(), request); }
  if (std::optional<Rejection> rejection = ReadMessage(value, "", request)) { return rejection; }
  const pb::Descriptor* type = request->GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* one = type->field(i);
    if (!RulesOf(one).required() || RulesOf(one).output_only()) { continue; }
    if (std::find(taken.begin(), taken.end(), one->name()) != taken.end()) { continue; }
    if (value.contains(one->name()) || value.contains(one->json_name())) { continue; }
    return Rejection{422, absl::StrCat(kTypeWords, "missing field `", one->name(), "`"), one->name()};
  }
  return std::nullopt;
}

}  // namespace forkd::gateway
