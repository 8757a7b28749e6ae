#include "server/gateway/enum_text.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "proto/forkd/v1/options.pb.h"

namespace forkd::gateway {
namespace pb = google::protobuf;

bool HasShortNames(const pb::EnumDescriptor* type) { return !type->options().GetExtension(v1::enum_names).strip_prefix().empty(); }

std::string EnumText(const pb::EnumValueDescriptor* value) {
  const std::string& prefix = value->type()->options().GetExtension(v1::enum_names).strip_prefix();
  if (prefix.empty() || !absl::StartsWith(value->name(), prefix)) { return value->name(); }
  return absl::AsciiStrToLower(value->name().substr(prefix.size()));
}

const pb::EnumValueDescriptor* FindEnumValue(const pb::EnumDescriptor* type, absl::string_view text) {
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->name() == text || EnumText(type->value(i)) == text) { return type->value(i); }
  }
  return nullptr;
}

}  // namespace forkd::gateway
