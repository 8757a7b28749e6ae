#include "cli/field_flags.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "cli/contract.h"

namespace forkd::cli {
namespace pb = google::protobuf;
using Field = pb::FieldDescriptor;
namespace {

// Deeper fields get no flag; keeps a request type that holds itself finite.
constexpr size_t kMaxNesting = 3;
// What "@FILE" may hold: more than any request takes.
constexpr size_t kMaxArgumentFileBytes = 64u << 20;

absl::Status BadValue(const Field* field, const std::string& text, const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is no value for ", field->name(), ": ", expected));
}

// Decimal, or octal with a leading 0 where the field's people write it so; 0x is hexadecimal.
absl::StatusOr<int64_t> ParseInteger(const Field* field, const std::string& text) {
  const bool octal = RulesOf(field).format() == v1::NUMBER_FORMAT_OCTAL;
  errno = 0;
  char* end = nullptr;
  const int64_t number = std::strtoll(text.c_str(), &end, octal ? 8 : 10);
  if (text.empty() || *end != '\0' || errno != 0 || absl::ascii_isspace(text.front())) {
    return BadValue(field, text, octal ? "an octal number is expected" : "a whole number is expected");
  }
  return number;
}

std::string EnumChoices(const pb::EnumDescriptor* type) {
  std::vector<std::string> names;
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->number() != 0) {
      names.push_back(ShortName(type->value(i)));
    }
  }
  return absl::StrJoin(names, ", ");
}

// Sets or adds the field's value; `field` is no map.
absl::Status SetScalar(pb::Message* message, const Field* field, const std::string& text) {
  const pb::Reflection* r = message->GetReflection();
  const bool repeated = field->is_repeated();
  switch (field->cpp_type()) {
    case Field::CPPTYPE_INT32: {
      FORKD_ASSIGN_OR_RETURN(const int64_t number, ParseInteger(field, text));
      if (number < std::numeric_limits<int32_t>::min() || number > std::numeric_limits<int32_t>::max()) {
        return BadValue(field, text, "it does not fit into 32 bits");
      }
      repeated ? r->AddInt32(message, field, static_cast<int32_t>(number)) : r->SetInt32(message, field, static_cast<int32_t>(number));
      return absl::OkStatus();
    }
    case Field::CPPTYPE_UINT32: {
      FORKD_ASSIGN_OR_RETURN(const int64_t number, ParseInteger(field, text));
      if (number < 0 || number > std::numeric_limits<uint32_t>::max()) {
        return BadValue(field, text, "it does not fit into 32 bits");
      }
      repeated ? r->AddUInt32(message, field, static_cast<uint32_t>(number)) : r->SetUInt32(message, field, static_cast<uint32_t>(number));
      return absl::OkStatus();
    }
    case Field::CPPTYPE_INT64: {
      FORKD_ASSIGN_OR_RETURN(const int64_t number, ParseInteger(field, text));
      repeated ? r->AddInt64(message, field, number) : r->SetInt64(message, field, number);
      return absl::OkStatus();
    }
    case Field::CPPTYPE_UINT64: {
      uint64_t number = 0;
      if (!absl::SimpleAtoi(text, &number)) {
        return BadValue(field, text, "a whole number from 0 is expected");
      }
      repeated ? r->AddUInt64(message, field, number) : r->SetUInt64(message, field, number);
      return absl::OkStatus();
    }
    case Field::CPPTYPE_DOUBLE:
    case Field::CPPTYPE_FLOAT: {
      double number = 0;
      if (!absl::SimpleAtod(text, &number)) {
        return BadValue(field, text, "a number is expected");
      }
      if (field->cpp_type() == Field::CPPTYPE_DOUBLE) {
        repeated ? r->AddDouble(message, field, number) : r->SetDouble(message, field, number);
      } else {
        const float narrow = static_cast<float>(number);
        repeated ? r->AddFloat(message, field, narrow) : r->SetFloat(message, field, narrow);
      }
      return absl::OkStatus();
    }
    case Field::CPPTYPE_BOOL: {
      bool value = false;
      if (!absl::SimpleAtob(text, &value)) {
        return BadValue(field, text, "true or false is expected");
      }
      repeated ? r->AddBool(message, field, value) : r->SetBool(message, field, value);
      return absl::OkStatus();
    }
    case Field::CPPTYPE_ENUM: {
      const pb::EnumValueDescriptor* value = FindValue(field->enum_type(), text);
      if (value == nullptr) {
        return BadValue(field, text, absl::StrCat("one of ", EnumChoices(field->enum_type()), " is expected"));
      }
      repeated ? r->AddEnum(message, field, value) : r->SetEnum(message, field, value);
      return absl::OkStatus();
    }
    case Field::CPPTYPE_STRING: {
      std::string value = text;
      if (field->type() == Field::TYPE_BYTES && absl::StartsWith(text, "@")) {
        if (absl::StartsWith(text, "@@")) {
          value = text.substr(1);
        } else {
          FORKD_ASSIGN_OR_RETURN(value, ReadArgumentFileBlocking(text.substr(1)));
        }
      }
      repeated ? r->AddString(message, field, std::move(value)) : r->SetString(message, field, std::move(value));
      return absl::OkStatus();
    }
    case Field::CPPTYPE_MESSAGE:
      break;
  }
  return absl::InternalError(absl::StrCat("field ", field->full_name(), " has no text form"));
}

absl::Status AddMapEntry(pb::Message* message, const Field* field, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return BadValue(field, text, "KEY=VALUE is expected");
  }
  const Field* key = field->message_type()->map_key();
  const Field* value = field->message_type()->map_value();
  // A key given twice takes the later value, as flags do: entries are looked for by their text.
  const pb::Reflection* r = message->GetReflection();
  for (int i = 0; i < r->FieldSize(*message, field); ++i) {
    pb::Message* entry = r->MutableRepeatedMessage(message, field, i);
    std::string scratch;
    if (key->cpp_type() == Field::CPPTYPE_STRING &&
        entry->GetReflection()->GetStringReference(*entry, key, &scratch) == text.substr(0, equals)) {
      return SetScalar(entry, value, text.substr(equals + 1));
    }
  }
  pb::Message* entry = r->AddMessage(message, field);
  FORKD_RETURN_IF_ERROR(SetScalar(entry, key, text.substr(0, equals)));
  return SetScalar(entry, value, text.substr(equals + 1));
}

bool IsPlainMessage(const Field* field) { return field->message_type() != nullptr && !field->is_map(); }

// "labels" → "label": each flag gives one.
std::string FlagName(const Field* field, const std::string& prefix) {
  std::string name = Kebab(field->name());
  if (field->is_repeated() && name.size() > 2 && absl::EndsWith(name, "s") && !absl::EndsWith(name, "ss")) {
    name.pop_back();
  }
  return prefix + name;
}

std::string PositionalName(const Field* field) { return absl::AsciiStrToUpper(field->name()); }

std::string Description(const Field* field) {
  std::string text = CommentOf(field);
  if (field->enum_type() != nullptr) {
    absl::StrAppend(&text, " One of: ", EnumChoices(field->enum_type()), ".");
  }
  if (field->type() == Field::TYPE_BYTES) {
    absl::StrAppend(&text, " Text, or @FILE, or @- for standard input.");
  }
  return text;
}

std::string TypeName(const Field* field) {
  if (field->is_map()) {
    return "KEY=VALUE";
  }
  switch (field->cpp_type()) {
    case Field::CPPTYPE_STRING:
      return field->type() == Field::TYPE_BYTES ? "BYTES" : "TEXT";
    case Field::CPPTYPE_ENUM:
      return "NAME";
    default:
      return "N";
  }
}

}  // namespace

absl::StatusOr<std::string> ReadArgumentFileBlocking(const std::string& path) {
  const UniqueFd opened(path == "-" ? -1 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const int fd = path == "-" ? STDIN_FILENO : opened.get();
  if (fd < 0) {
    return absl::InvalidArgumentError(absl::StrCat("open \"", path, "\": ", std::strerror(errno)));
  }
  std::string content;
  std::string buffer(64 << 10, '\0');
  while (true) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got == 0) {
      return content;
    }
    if (got < 0) {
      if (errno == EINTR) {
        continue;
      }
      return absl::InvalidArgumentError(absl::StrCat("read \"", path, "\": ", std::strerror(errno)));
    }
    if (content.size() + static_cast<size_t>(got) > kMaxArgumentFileBytes) {
      return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" has more than 64 MiB; a call takes less"));
    }
    content.append(buffer.data(), static_cast<size_t>(got));
  }
}

struct FieldFlags::Flag {
  std::vector<const Field*> path;  // Through nested messages; the last is the field that gets the value.
  CLI::Option* option = nullptr;
  std::vector<std::string> values;
  bool on = false;
};

FieldFlags::FieldFlags(const pb::Descriptor* type, const std::string& skipped_field, CLI::App* app) {
  // Positional arguments are filled in the order in which they are added.
  std::map<int, const Field*> positional;
  for (int i = 0; i < type->field_count(); ++i) {
    const Field* field = type->field(i);
    const int place = RulesOf(field).cli().positional();
    if (place > 0 && !IsPlainMessage(field)) {
      positional[place] = field;
    }
  }
  for (const auto& [place, field] : positional) {
    auto flag = std::make_unique<Flag>();
    flag->path = {field};
    flag->option = app->add_option(PositionalName(field), flag->values, Description(field))->type_name("");
    if (field->is_repeated()) {
      flag->option->expected(-1);
    } else {
      // Without this, one argument would take all that follow it: CLI11 sees a vector.
      flag->option->expected(1)->allow_extra_args(false);
    }
    flag->option->required(RulesOf(field).required());
    flags_.push_back(std::move(flag));
  }
  Add(type, "", {}, skipped_field, app);
}

FieldFlags::~FieldFlags() = default;

void FieldFlags::Add(const pb::Descriptor* type, const std::string& prefix, std::vector<const Field*> path, const std::string& skipped_field,
                     CLI::App* app) {
  for (int i = 0; i < type->field_count(); ++i) {
    const Field* field = type->field(i);
    const v1::FieldRules& rules = RulesOf(field);
    if (rules.output_only() || rules.cli().hidden() || (path.empty() && rules.cli().positional() > 0) ||
        (path.empty() && field->name() == skipped_field)) {
      continue;
    }
    std::vector<const Field*> inner = path;
    inner.push_back(field);
    if (IsPlainMessage(field)) {
      if (!field->is_repeated() && inner.size() < kMaxNesting) {
        Add(field->message_type(), absl::StrCat(prefix, Kebab(field->name()), "."), std::move(inner), skipped_field, app);
      }
      continue;
    }
    auto flag = std::make_unique<Flag>();
    flag->path = std::move(inner);
    const std::string name = FlagName(field, prefix);
    std::string names = absl::StrCat("--", name);
    if (name != prefix + Kebab(field->name())) {
      absl::StrAppend(&names, ",--", prefix, Kebab(field->name()));
    }
    if (!rules.cli().short_flag().empty()) {
      absl::StrAppend(&names, ",-", rules.cli().short_flag());
    }
    if (field->cpp_type() == Field::CPPTYPE_BOOL && !field->is_repeated()) {
      // A switch whose absence does not mean false needs a way to say false.
      if (field->has_presence()) {
        absl::StrAppend(&names, ",!--", prefix, "no-", Kebab(field->name()));
      }
      flag->option = app->add_flag(names, flag->on, Description(field));
    } else {
      flag->option = app->add_option(names, flag->values, Description(field))->type_name(TypeName(field));
      if (field->is_repeated()) {
        // One value a flag: more would swallow the positional arguments that follow.
        flag->option->allow_extra_args(false);
      } else {
        flag->option->expected(1)->allow_extra_args(false);
      }
    }
    if (!rules.default_value().empty() && !rules.compatibility_only()) {
      flag->option->description(absl::StrCat(flag->option->get_description(), " [default: ", rules.default_value(), "]"));
    }
    if (rules.compatibility_only()) {
      flag->option->group("");
    }
    if (rules.required() && path.empty()) {
      flag->option->required();
    }
    flags_.push_back(std::move(flag));
  }
}

absl::Status FieldFlags::Fill(pb::Message* request) const {
  for (const std::unique_ptr<Flag>& flag : flags_) {
    if (flag->option->count() == 0) {
      continue;
    }
    pb::Message* holder = request;
    for (size_t i = 0; i + 1 < flag->path.size(); ++i) {
      holder = holder->GetReflection()->MutableMessage(holder, flag->path[i]);
    }
    const Field* field = flag->path.back();
    if (flag->values.empty()) {
      if (field->cpp_type() == Field::CPPTYPE_BOOL) {
        holder->GetReflection()->SetBool(holder, field, flag->on);
      }
      continue;
    }
    for (const std::string& value : flag->values) {
      FORKD_RETURN_IF_ERROR(field->is_map() ? AddMapEntry(holder, field, value) : SetScalar(holder, field, value));
    }
  }
  return absl::OkStatus();
}

std::string ArgumentName(const pb::Descriptor* type, absl::string_view path) {
  std::string prefix;
  for (absl::string_view part : absl::StrSplit(path, '.')) {
    part = part.substr(0, part.find('['));
    const Field* field = type == nullptr ? nullptr : type->FindFieldByName(std::string(part));
    if (field == nullptr) {
      return std::string(path);
    }
    if (prefix.empty() && RulesOf(field).cli().positional() > 0) {
      return PositionalName(field);
    }
    if (!IsPlainMessage(field)) {
      return absl::StrCat("--", FlagName(field, prefix));
    }
    absl::StrAppend(&prefix, Kebab(field->name()), ".");
    type = field->message_type();
  }
  return std::string(path);
}

}  // namespace forkd::cli
