// The contract as the gateway sees it: methods, options and comments of a FileDescriptorSet.
#ifndef FORKD_SERVER_GATEWAY_CONTRACT_H_
#define FORKD_SERVER_GATEWAY_CONTRACT_H_

#include <memory>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>

#include "absl/status/statusor.h"

namespace forkd::gateway {

// Owns the descriptors and the factory of their messages; both outlive what is made of them. Immutable after Load; any thread.
class Contract {
 public:
  // `set` holds imports before the files that need them, as protoc --include_imports writes it. INVALID_ARGUMENT if it does not fit together.
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

// forkd's own, with comments, as it was when this was built.
const google::protobuf::FileDescriptorSet& BuiltInContract();

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_CONTRACT_H_
