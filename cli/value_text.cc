#include "cli/value_text.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "cli/contract.h"

namespace forkd::cli {
namespace pb = google::protobuf;
using Json = nlohmann::ordered_json;
using Field = pb::FieldDescriptor;
namespace {

// Nesting of our messages is shallow; the bound keeps a recursive type from running away.
constexpr int kMaxDepth = 32;

Json MessageJson(const pb::Message& message, int depth);

Json ScalarJson(const pb::Message& message, const Field* field, int index, int depth) {
  const pb::Reflection* r = message.GetReflection();
  const bool repeated = index >= 0;
  std::string scratch;
  switch (field->cpp_type()) {
    case Field::CPPTYPE_INT32:
      return repeated ? r->GetRepeatedInt32(message, field, index) : r->GetInt32(message, field);
    case Field::CPPTYPE_INT64:
      return repeated ? r->GetRepeatedInt64(message, field, index) : r->GetInt64(message, field);
    case Field::CPPTYPE_UINT32:
      return repeated ? r->GetRepeatedUInt32(message, field, index) : r->GetUInt32(message, field);
    case Field::CPPTYPE_UINT64:
      return repeated ? r->GetRepeatedUInt64(message, field, index) : r->GetUInt64(message, field);
    case Field::CPPTYPE_DOUBLE:
      return repeated ? r->GetRepeatedDouble(message, field, index) : r->GetDouble(message, field);
    case Field::CPPTYPE_FLOAT:
      return repeated ? r->GetRepeatedFloat(message, field, index) : r->GetFloat(message, field);
    case Field::CPPTYPE_BOOL:
      return repeated ? r->GetRepeatedBool(message, field, index) : r->GetBool(message, field);
    case Field::CPPTYPE_ENUM: {
      // A newer daemon may send values that this forkctl does not know: their number says more than nothing.
      const int number = repeated ? r->GetRepeatedEnumValue(message, field, index) : r->GetEnumValue(message, field);
      const pb::EnumValueDescriptor* value = field->enum_type()->FindValueByNumber(number);
      return value == nullptr ? Json(number) : Json(ShortName(value));
    }
    case Field::CPPTYPE_STRING: {
      const std::string& text =
          repeated ? r->GetRepeatedStringReference(message, field, index, &scratch) : r->GetStringReference(message, field, &scratch);
      return field->type() == Field::TYPE_BYTES ? Json(absl::Base64Escape(text)) : Json(text);
    }
    case Field::CPPTYPE_MESSAGE:
      return MessageJson(repeated ? r->GetRepeatedMessage(message, field, index) : r->GetMessage(message, field), depth + 1);
  }
  return nullptr;
}

std::string KeyText(const Json& key) { return key.is_string() ? key.get<std::string>() : key.dump(); }

// Entries of a map field, ordered by key: maps have no order of their own, and output must not change from run to run.
std::vector<std::pair<std::string, Json>> MapEntries(const pb::Message& message, const Field* field, int depth) {
  std::vector<std::pair<std::string, Json>> entries;
  const pb::Reflection* r = message.GetReflection();
  for (int i = 0; i < r->FieldSize(message, field); ++i) {
    const pb::Message& entry = r->GetRepeatedMessage(message, field, i);
    entries.emplace_back(KeyText(ScalarJson(entry, field->message_type()->map_key(), -1, depth)),
                         ScalarJson(entry, field->message_type()->map_value(), -1, depth));
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return entries;
}

Json FieldJson(const pb::Message& message, const Field* field, int depth) {
  if (field->is_map()) {
    Json object = Json::object();
    for (auto& [key, value] : MapEntries(message, field, depth)) {
      object[key] = std::move(value);
    }
    return object;
  }
  if (field->is_repeated()) {
    Json array = Json::array();
    for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
      array.push_back(ScalarJson(message, field, i, depth));
    }
    return array;
  }
  return ScalarJson(message, field, -1, depth);
}

Json MessageJson(const pb::Message& message, int depth) {
  Json object = Json::object();
  if (depth > kMaxDepth) {
    return object;
  }
  const pb::Descriptor* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const Field* field = type->field(i);
    if (field->has_presence() && !message.GetReflection()->HasField(message, field)) {
      if (RulesOf(field).null_when_absent()) {
        object[field->name()] = nullptr;
      }
      continue;
    }
    object[field->name()] = FieldJson(message, field, depth);
  }
  return object;
}

// A word that YAML reads as the same string without quotes.
bool IsPlainYaml(absl::string_view text) {
  static constexpr absl::string_view kSpecial[] = {"true", "false", "null", "yes", "no", "on", "off", "~", "y", "n"};
  if (text.empty() || std::any_of(std::begin(kSpecial), std::end(kSpecial), [&](absl::string_view word) {
        return absl::EqualsIgnoreCase(text, word);
      })) {
    return false;
  }
  const bool safe = std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '-' || c == '/' || c == '.'; });
  // Beginning with a letter it is no number, and no document mark.
  return safe && (absl::ascii_isalpha(text.front()) || text.front() == '/');
}

std::string DumpScalar(const Json& value) {
  if (value.is_string() && IsPlainYaml(value.get_ref<const std::string&>())) {
    return value.get<std::string>();
  }
  // JSON is YAML: quoted strings, numbers, true, null, [] and {}.
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void AppendYaml(const Json& value, int indent, std::string* out) {
  const std::string pad(indent, ' ');
  if (value.is_array()) {
    for (const Json& element : value) {
      if (element.is_structured() && !element.empty()) {
        std::string block;
        AppendYaml(element, indent + 2, &block);
        absl::StrAppend(out, pad, "- ", block.substr(indent + 2));
      } else {
        absl::StrAppend(out, pad, "- ", DumpScalar(element), "\n");
      }
    }
    return;
  }
  for (const auto& [key, element] : value.items()) {
    absl::StrAppend(out, pad, DumpScalar(Json(key)), ":");
    if (element.is_structured() && !element.empty()) {
      absl::StrAppend(out, "\n");
      AppendYaml(element, indent + 2, out);
    } else {
      absl::StrAppend(out, " ", DumpScalar(element), "\n");
    }
  }
}

std::string SizeText(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%.0f B", bytes) : absl::StrFormat("%.1f %s", bytes, kUnits[unit]);
}

std::string NumberText(const Field* field, int64_t number) {
  if (RulesOf(field).format() == v1::NUMBER_FORMAT_OCTAL) {
    return absl::StrFormat("%#o", number);
  }
  if (absl::EndsWith(field->name(), "_unix")) {
    return number == 0 ? "-" : absl::FormatTime("%Y-%m-%d %H:%M:%SZ", absl::FromUnixSeconds(number), absl::UTCTimeZone());
  }
  if (absl::EndsWith(field->name(), "_bytes")) {
    return SizeText(static_cast<double>(number));
  }
  if (absl::EndsWith(field->name(), "_mib")) {
    return absl::StrCat(number, " MiB");
  }
  return absl::StrCat(number);
}

std::string JsonCell(const Field* field, const Json& value) {
  if (value.is_null()) {
    return "-";
  }
  if (value.is_number_integer()) {
    return NumberText(field, value.get<int64_t>());
  }
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    return text.empty() ? "-" : Printable(text, /*multi_line=*/false);
  }
  return Printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), /*multi_line=*/false);
}

// Columns that a terminal shows: UTF-8 continuation bytes take none. (Wide characters are counted as one; nothing of ours prints them.)
size_t ShownWidth(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string Header(const Field* field) {
  const std::string& given = RulesOf(field).cli().header();
  if (!given.empty()) {
    return given;
  }
  absl::string_view name = field->name();
  for (const absl::string_view unit : {"_bytes", "_mib", "_unix"}) {
    if (absl::EndsWith(name, unit)) {
      name.remove_suffix(unit.size());
      break;
    }
  }
  return absl::AsciiStrToUpper(name);
}

bool IsMessageList(const Field* field) { return field->is_repeated() && !field->is_map() && field->message_type() != nullptr; }

// Nothing worth a line: absent, or an empty string, list or map.
bool IsEmpty(const pb::Message& message, const Field* field) {
  const pb::Reflection* r = message.GetReflection();
  if (field->is_repeated()) {
    return r->FieldSize(message, field) == 0;
  }
  if (field->has_presence()) {
    return !r->HasField(message, field);
  }
  return field->cpp_type() == Field::CPPTYPE_STRING && r->GetString(message, field).empty();
}

void AppendDetail(const pb::Message& message, int indent, int depth, std::string* out) {
  const pb::Descriptor* type = message.GetDescriptor();
  const pb::Reflection* r = message.GetReflection();
  const std::string pad(indent, ' ');
  size_t width = 0;
  for (int i = 0; i < type->field_count(); ++i) {
    if (!IsEmpty(message, type->field(i)) && !IsMessageList(type->field(i))) {
      width = std::max(width, type->field(i)->name().size());
    }
  }
  std::string tables;
  for (int i = 0; i < type->field_count() && depth <= kMaxDepth; ++i) {
    const Field* field = type->field(i);
    if (IsEmpty(message, field)) {
      continue;
    }
    if (IsMessageList(field)) {
      Table table(field->message_type());
      for (int k = 0; k < r->FieldSize(message, field); ++k) {
        table.Add(r->GetRepeatedMessage(message, field, k));
      }
      absl::StrAppend(&tables, "\n", field->name(), ":\n", table.Take());
    } else if (field->message_type() != nullptr && !field->is_map()) {
      absl::StrAppend(out, pad, field->name(), "\n");
      AppendDetail(r->GetMessage(message, field), indent + 2, depth + 1, out);
    } else {
      absl::StrAppendFormat(out, "%s%-*s  %s\n", pad, static_cast<int>(width), field->name(), CellText(message, field));
    }
  }
  absl::StrAppend(out, tables);
}

}  // namespace

Json ToJson(const pb::Message& message) { return MessageJson(message, 0); }

Json ToJson(const pb::Message& message, const Field* field) { return FieldJson(message, field, 0); }

std::string JsonText(const Json& value, bool one_line) {
  return value.dump(one_line ? -1 : 2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string YamlText(const Json& value) {
  if (!value.is_structured() || value.empty()) {
    return DumpScalar(value) + "\n";
  }
  std::string text;
  AppendYaml(value, 0, &text);
  return text;
}

std::string CellText(const pb::Message& message, const Field* field) {
  if (IsEmpty(message, field)) {
    return "-";
  }
  if (field->is_map()) {
    std::vector<std::string> pairs;
    for (const auto& [key, value] : MapEntries(message, field, 0)) {
      pairs.push_back(absl::StrCat(Printable(key, false), "=", JsonCell(field->message_type()->map_value(), value)));
    }
    return absl::StrJoin(pairs, ",");
  }
  if (field->is_repeated()) {
    std::vector<std::string> elements;
    for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
      elements.push_back(JsonCell(field, ScalarJson(message, field, i, 0)));
    }
    return absl::StrJoin(elements, ",");
  }
  return JsonCell(field, ScalarJson(message, field, -1, 0));
}

Table::Table(const pb::Descriptor* type) { AddColumns(type, {}); }

void Table::AddColumns(const pb::Descriptor* type, std::vector<const Field*> path) {
  std::vector<const Field*> fields;
  for (int i = 0; i < type->field_count(); ++i) {
    if (RulesOf(type->field(i)).cli().column() > 0) {
      fields.push_back(type->field(i));
    }
  }
  std::sort(fields.begin(), fields.end(),
            [](const Field* a, const Field* b) { return RulesOf(a).cli().column() < RulesOf(b).cli().column(); });
  if (fields.empty()) {
    for (int i = 0; i < type->field_count(); ++i) {
      fields.push_back(type->field(i));
    }
  }
  for (const Field* field : fields) {
    std::vector<const Field*> inner = path;
    inner.push_back(field);
    if (field->message_type() != nullptr && !field->is_repeated() && inner.size() < 4) {
      AddColumns(field->message_type(), std::move(inner));
    } else {
      const std::string header = Header(field);
      columns_.push_back({std::move(inner), header, ShownWidth(header)});
    }
  }
}

void Table::Add(const pb::Message& row) {
  std::vector<std::string> cells;
  for (Column& column : columns_) {
    const pb::Message* holder = &row;
    for (size_t i = 0; i + 1 < column.path.size(); ++i) {
      holder = &holder->GetReflection()->GetMessage(*holder, column.path[i]);
    }
    cells.push_back(CellText(*holder, column.path.back()));
    column.width = std::max(column.width, ShownWidth(cells.back()));
  }
  rows_.push_back(std::move(cells));
}

std::string Table::Take() {
  std::string text;
  const auto append_line = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      absl::StrAppend(&line, cells[i]);
      if (i + 1 < cells.size()) {
        line.append(columns_[i].width - ShownWidth(cells[i]) + 2, ' ');
      }
    }
    absl::StrAppend(&text, line, "\n");
  };
  if (!head_shown_) {
    std::vector<std::string> head;
    for (const Column& column : columns_) {
      head.push_back(column.header);
    }
    append_line(head);
    head_shown_ = true;
  }
  for (const std::vector<std::string>& row : rows_) {
    append_line(row);
  }
  rows_.clear();
  return text;
}

std::string DetailText(const pb::Message& message) {
  std::string text;
  AppendDetail(message, 0, 0, &text);
  return text;
}

std::string Printable(absl::string_view text, bool multi_line) {
  std::string shown;
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c < 0x80) {
      if ((c >= 0x20 && c != 0x7F) || (multi_line && (c == '\n' || c == '\t'))) {
        shown += static_cast<char>(c);
      } else {
        absl::StrAppendFormat(&shown, "\\x%02x", c);
      }
      ++i;
      continue;
    }
    const size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC2 ? 2 : 0;
    bool valid = length > 0 && i + length <= text.size() && c < 0xF5;
    for (size_t k = 1; valid && k < length; ++k) {
      valid = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    }
    // U+0080–U+009F are control characters too: terminals take 0x9B for the start of an escape sequence.
    if (valid && !(c == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0)) {
      absl::StrAppend(&shown, text.substr(i, length));
      i += length;
    } else {
      absl::StrAppendFormat(&shown, "\\x%02x", c);
      ++i;
    }
  }
  return shown;
}

}  // namespace forkd::cli
