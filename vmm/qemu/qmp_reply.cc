#include "vmm/qemu/qmp_reply.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/error.h"

namespace forkd::vmm {
namespace {

using nlohmann::json;

absl::Status Broken(absl::string_view what, absl::string_view line) {
  return Error(absl::StatusCode::kInternal, Reason::kVmmProtocol, absl::StrCat("QEMU's control socket: ", what, ": ", Quoted(line)));
}

// QMP's own replies nest less than ten deep; the library copies and frees values recursively.
constexpr int kMaxDepth = 64;

bool IsTooDeep(absl::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') {
      ++i;
    } else if (c == '"') {
      in_string = !in_string;
    } else if (!in_string && (c == '[' || c == '{') && ++depth > kMaxDepth) {
      return true;
    } else if (!in_string && (c == ']' || c == '}')) {
      --depth;
    }
  }
  return false;
}

const json* Member(const json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

const json* ObjectMember(const json& object, const char* name) {
  const json* member = Member(object, name);
  return member != nullptr && member->is_object() ? member : nullptr;
}

std::optional<std::string> StringMember(const json& object, const char* name) {
  const json* member = Member(object, name);
  if (member == nullptr || !member->is_string()) { return std::nullopt; }
  return member->get<std::string>();
}

std::optional<int> IntMember(const json& object, const char* name) {
  const json* member = Member(object, name);
  if (member == nullptr || !member->is_number_unsigned() || member->get<uint64_t>() > 1'000'000) { return std::nullopt; }
  return member->get<int>();
}

absl::StatusOr<QmpMessage> ParseGreeting(const json& greeting, absl::string_view line) {
  const json* version = ObjectMember(greeting, "version");
  const json* qemu = version == nullptr ? nullptr : ObjectMember(*version, "qemu");
  if (qemu == nullptr) { return Broken("a greeting without a version", line); }
  const std::optional<int> major = IntMember(*qemu, "major");
  const std::optional<int> minor = IntMember(*qemu, "minor");
  if (!major.has_value() || !minor.has_value()) { return Broken("a greeting without a version", line); }
  return QmpGreeting{.major = *major, .minor = *minor};
}

}  // namespace

absl::StatusOr<QmpMessage> ParseQmpMessage(absl::string_view line) {
  if (IsTooDeep(line)) { return Broken("nested too deep", line); }
  json message = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (message.is_discarded() || !message.is_object()) { return Broken("not a JSON object", line); }
  if (const json* greeting = ObjectMember(message, "QMP")) { return ParseGreeting(*greeting, line); }
  if (Member(message, "event") != nullptr) {
    std::optional<std::string> name = StringMember(message, "event");
    if (!name.has_value()) { return Broken("an event without a name", line); }
    const json* data = Member(message, "data");
    if (data != nullptr && !data->is_object()) { return Broken("an event's data is no object", line); }
    return QmpEvent{.name = *std::move(name), .data = data == nullptr ? json::object() : *data};
  }
  const json* value = Member(message, "return");
  const json* error = Member(message, "error");
  if ((value == nullptr) == (error == nullptr)) { return Broken("neither greeting, event, reply nor error", line); }
  std::optional<std::string> id = StringMember(message, "id");
  if (error != nullptr) {
    std::optional<std::string> error_class = error->is_object() ? StringMember(*error, "class") : std::nullopt;
    std::optional<std::string> description = error->is_object() ? StringMember(*error, "desc") : std::nullopt;
    if (!error_class.has_value() || !description.has_value()) { return Broken("an error without class or description", line); }
    if (!id.has_value()) { return Broken("QEMU did not understand us", *description); }
    return QmpFailure{.id = *std::move(id), .error_class = *std::move(error_class), .description = *std::move(description)};
  }
  if (!id.has_value()) { return Broken("a reply without an id", line); }
  return QmpReturn{.id = *std::move(id), .value = *value};
}

absl::Status QmpLines::Append(absl::string_view bytes) {
  buffer_.erase(0, consumed_);
  consumed_ = 0;
  buffer_.append(bytes.data(), bytes.size());
  const std::size_t last_end = buffer_.rfind('\n');
  const std::size_t unfinished = last_end == std::string::npos ? buffer_.size() : buffer_.size() - last_end - 1;
  if (unfinished > kMaxQmpLineBytes) { return Broken(absl::StrCat("a line of more than ", kMaxQmpLineBytes, " bytes"), buffer_); }
  return absl::OkStatus();
}

std::optional<std::string> QmpLines::Next() {
  for (;;) {
    const std::size_t end = buffer_.find('\n', consumed_);
    if (end == std::string::npos) { return std::nullopt; }
    absl::string_view line(buffer_.data() + consumed_, end - consumed_);
    absl::ConsumeSuffix(&line, "\r");
    consumed_ = end + 1;
    if (!line.empty()) { return std::string(line); }
  }
}

}  // namespace forkd::vmm
