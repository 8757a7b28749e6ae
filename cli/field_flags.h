// Request fields as command-line flags and positional arguments.
#ifndef FORKD_CLI_FIELD_FLAGS_H_
#define FORKD_CLI_FIELD_FLAGS_H_

#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <google/protobuf/message.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::cli {

// Reads what an "@FILE" argument names, "-" being standard input. Blocking. An error names the file.
absl::StatusOr<std::string> ReadArgumentFileBlocking(const std::string& path);

// The flags and arguments of one request type, added to a CLI11 app; after the app has parsed, they fill a message.
class FieldFlags {
 public:
  // `app` must outlive this object. `skipped_field` gets no flag (its bytes come from standard input); may be empty.
  FieldFlags(const google::protobuf::Descriptor* type, const std::string& skipped_field, CLI::App* app);
  ~FieldFlags();

  // Sets the fields that the command line named. INVALID_ARGUMENT, for people, for a value that is none of its field's type.
  absl::Status Fill(google::protobuf::Message* request) const;

 private:
  struct Flag;
  void Add(const google::protobuf::Descriptor* type, const std::string& prefix, std::vector<const google::protobuf::FieldDescriptor*> path,
           const std::string& skipped_field, CLI::App* app);

  std::vector<std::unique_ptr<Flag>> flags_;
};

// How a person names a field of a request: "ID", "--memory-mib". `path` is in proto names: "start.id", "labels[a]". Falls back to `path`.
std::string ArgumentName(const google::protobuf::Descriptor* type, absl::string_view path);

}  // namespace forkd::cli

#endif  // FORKD_CLI_FIELD_FLAGS_H_
