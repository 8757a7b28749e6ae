#include <cstddef>

#include "cli/contract.h"

extern "C" {
// //proto/forkd/v1:v1.binpb, embedded by embed.py: the generated code's own descriptors have no comments, which help shows.
extern const unsigned char forkd_cli_contract_bytes[];
extern const std::size_t forkd_cli_contract_size;
}

namespace forkd::cli {

const google::protobuf::FileDescriptorSet& BuiltInContract() {
  static const google::protobuf::FileDescriptorSet* const set = [] {
    auto* parsed = new google::protobuf::FileDescriptorSet();
    parsed->ParseFromArray(forkd_cli_contract_bytes, static_cast<int>(forkd_cli_contract_size));
    return parsed;
  }();
  return *set;
}

}  // namespace forkd::cli
