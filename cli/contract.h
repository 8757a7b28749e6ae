// The contract as forkctl sees it: services, methods, options and comments of a FileDescriptorSet, none of which is named in code.
#ifndef FORKD_CLI_CONTRACT_H_
#define FORKD_CLI_CONTRACT_H_

#include <memory>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/forkd/v1/options.pb.h"

namespace forkd::cli {

// Owns the descriptors and the factory of their messages. Immutable after Load; descriptors and messages must not outlive it.
class Contract {
 public:
  // `set` holds its imports before the files that need them, as protoc --include_imports writes it. INTERNAL if it does not fit together.
  static absl::StatusOr<std::unique_ptr<Contract>> Load(const google::protobuf::FileDescriptorSet& set);

  // All methods of all services, in the order of the files.
  const std::vector<const google::protobuf::MethodDescriptor*>& methods() const { return methods_; }

  std::unique_ptr<google::protobuf::Message> NewMessage(const google::protobuf::Descriptor* type) const;

 private:
  Contract() : factory_(&pool_) {}

  google::protobuf::DescriptorPool pool_;
  mutable google::protobuf::DynamicMessageFactory factory_;
  std::vector<const google::protobuf::MethodDescriptor*> methods_;
};

// The contract that this forkctl was built with.
const google::protobuf::FileDescriptorSet& BuiltInContract();

const v1::CallOptions& OptionsOf(const google::protobuf::MethodDescriptor* method);
const v1::FieldRules& RulesOf(const google::protobuf::FieldDescriptor* field);

// Name of the response's field that is the answer itself over REST (google.api.http's response_body), else nullptr.
const google::protobuf::FieldDescriptor* AnswerField(const google::protobuf::MethodDescriptor* method);

// The comment above an element: without comment marks, one paragraph's lines joined. Empty where there is none.
std::string CommentOf(const google::protobuf::MethodDescriptor* method);
std::string CommentOf(const google::protobuf::FieldDescriptor* field);

// The first sentence of a comment.
absl::string_view Summary(absl::string_view comment);

// "created_at_unix" → "created-at-unix", "PingSandbox" → "ping-sandbox".
std::string Kebab(absl::string_view name);

// The value's short name, as options.proto's EnumNames says; its full name where there is none.
std::string ShortName(const google::protobuf::EnumValueDescriptor* value);
// By short or full name; nullptr if there is none.
const google::protobuf::EnumValueDescriptor* FindValue(const google::protobuf::EnumDescriptor* type, absl::string_view name);

}  // namespace forkd::cli

#endif  // FORKD_CLI_CONTRACT_H_
