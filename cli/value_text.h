// Messages as people and scripts read them.
#ifndef FORKD_CLI_VALUE_TEXT_H_
#define FORKD_CLI_VALUE_TEXT_H_

#include <string>
#include <vector>

#include <google/protobuf/message.h>
#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"

namespace forkd::cli {

enum class OutputFormat { kTable, kJson, kYaml };

// The message in the JSON of the REST contract: proto field names, 64-bit numbers as numbers, enum values by short name, bytes in base64, absent
// optional fields left out or null as options.proto says. Bytes that are not UTF-8 become U+FFFD.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);
// One field of it: an array, an object, or a scalar.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor* field);

// Both end with a newline.
std::string JsonText(const nlohmann::ordered_json& value, bool one_line);
std::string YamlText(const nlohmann::ordered_json& value);

// One cell: times, sizes and modes in the form people use, "-" where there is nothing. Control characters are escaped: what a guest sent
// must not drive the terminal.
std::string CellText(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor* field);

// Rows of one message type under a head. Columns are those that the fields' options name, else all fields.
class Table {
 public:
  explicit Table(const google::protobuf::Descriptor* type);

  void Add(const google::protobuf::Message& row);
  // The head (once) and all rows added since the last call, each line with a newline. Columns only get wider from call to call.
  std::string Take();

 private:
  struct Column {
    std::vector<const google::protobuf::FieldDescriptor*> path;  // Through nested messages; the last is the value.
    std::string header;
    size_t width;
  };
  void AddColumns(const google::protobuf::Descriptor* type, std::vector<const google::protobuf::FieldDescriptor*> path);

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
  bool head_shown_ = false;
};

// One message, a line for each field that is set; lists of messages as tables below.
std::string DetailText(const google::protobuf::Message& message);

// Control characters and bytes that are not UTF-8 as \xNN; newlines and tabs stay where `multi_line`.
std::string Printable(absl::string_view text, bool multi_line);

}  // namespace forkd::cli

#endif  // FORKD_CLI_VALUE_TEXT_H_
