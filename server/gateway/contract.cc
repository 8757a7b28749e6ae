#include "server/gateway/contract.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

extern "C" {
// //proto/forkd/v1:v1.binpb, embedded by embed.py: the generated code's own descriptors have no comments.
extern const unsigned char forkd_gateway_contract_bytes[];
extern const std::size_t forkd_gateway_contract_size;
}

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

class FirstComplaint : public pb::DescriptorPool::ErrorCollector {
 public:
  void AddError(const std::string& file, const std::string& element, const pb::Message*, ErrorLocation, const std::string& message) override {
    if (text.empty()) { text = absl::StrCat(file, ": ", element, ": ", message); }
  }
  std::string text;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contract>> Contract::Load(const pb::FileDescriptorSet& set) {
  std::unique_ptr<Contract> contract(new Contract());
  for (const pb::FileDescriptorProto& file : set.file()) {
    FirstComplaint complaint;
    const pb::FileDescriptor* built = contract->pool_.BuildFileCollectingErrors(file, &complaint);
    if (built == nullptr) { return absl::InvalidArgumentError(absl::StrCat("the contract does not fit together: ", complaint.text)); }
    for (int s = 0; s < built->service_count(); ++s) {
      for (int m = 0; m < built->service(s)->method_count(); ++m) { contract->methods_.push_back(built->service(s)->method(m)); }
    }
  }
  return contract;
}

std::unique_ptr<pb::Message> Contract::NewMessage(const pb::Descriptor* type) const {
  return std::unique_ptr<pb::Message>(factory_.GetPrototype(type)->New());
}

const pb::FileDescriptorSet& BuiltInContract() {
  static const pb::FileDescriptorSet* const set = [] {
    auto* parsed = new pb::FileDescriptorSet();
    parsed->ParseFromArray(forkd_gateway_contract_bytes, static_cast<int>(forkd_gateway_contract_size));
    return parsed;
  }();
  return *set;
}

}  // namespace forkd::gateway
