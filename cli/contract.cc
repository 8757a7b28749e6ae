#include "cli/contract.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "google/api/annotations.pb.h"

namespace forkd::cli {
namespace pb = google::protobuf;
namespace {

// Collects what the pool complains of.
class FirstComplaint : public pb::DescriptorPool::ErrorCollector {
 public:
  void AddError(const std::string& file, const std::string& element, const pb::Message*, ErrorLocation,
                const std::string& message) override {
    if (text.empty()) {
      text = absl::StrCat(file, ": ", element, ": ", message);
    }
  }
  std::string text;
};

template <typename Element>
std::string LeadingComment(const Element* element) {
  pb::SourceLocation location;
  if (element == nullptr || !element->GetSourceLocation(&location)) {
    return "";
  }
  std::string text;
  for (absl::string_view line : absl::StrSplit(location.leading_comments, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) {
      continue;
    }
    absl::StrAppend(&text, text.empty() ? "" : " ", line);
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Contract>> Contract::Load(const pb::FileDescriptorSet& set) {
  std::unique_ptr<Contract> contract(new Contract());
  for (const pb::FileDescriptorProto& file : set.file()) {
    FirstComplaint complaint;
    const pb::FileDescriptor* built = contract->pool_.BuildFileCollectingErrors(file, &complaint);
    if (built == nullptr) {
      return Error(absl::StatusCode::kInternal, Reason::kInternal, absl::StrCat("the contract does not fit together: ", complaint.text));
    }
    for (int s = 0; s < built->service_count(); ++s) {
      for (int m = 0; m < built->service(s)->method_count(); ++m) {
        contract->methods_.push_back(built->service(s)->method(m));
      }
    }
  }
  return contract;
}

std::unique_ptr<pb::Message> Contract::NewMessage(const pb::Descriptor* type) const {
  return std::unique_ptr<pb::Message>(factory_.GetPrototype(type)->New());
}

const v1::CallOptions& OptionsOf(const pb::MethodDescriptor* method) { return method->options().GetExtension(v1::call); }

const v1::FieldRules& RulesOf(const pb::FieldDescriptor* field) { return field->options().GetExtension(v1::field); }

const pb::FieldDescriptor* AnswerField(const pb::MethodDescriptor* method) {
  const std::string& name = method->options().GetExtension(google::api::http).response_body();
  return name.empty() ? nullptr : method->output_type()->FindFieldByName(name);
}

std::string CommentOf(const pb::MethodDescriptor* method) { return LeadingComment(method); }
std::string CommentOf(const pb::FieldDescriptor* field) { return LeadingComment(field); }

absl::string_view Summary(absl::string_view comment) {
  const size_t end = comment.find(". ");
  return end == absl::string_view::npos ? comment : comment.substr(0, end + 1);
}

std::string Kebab(absl::string_view name) {
  std::string kebab;
  for (const char c : name) {
    if (c == '_') {
      kebab += '-';
    } else if (absl::ascii_isupper(c)) {
      absl::StrAppend(&kebab, kebab.empty() || kebab.back() == '-' ? "" : "-", std::string(1, absl::ascii_tolower(c)));
    } else {
      kebab += c;
    }
  }
  return kebab;
}

std::string ShortName(const pb::EnumValueDescriptor* value) {
  const std::string& prefix = value->type()->options().GetExtension(v1::enum_names).strip_prefix();
  if (prefix.empty() || !absl::StartsWith(value->name(), prefix)) {
    return value->name();
  }
  return absl::AsciiStrToLower(value->name().substr(prefix.size()));
}

const pb::EnumValueDescriptor* FindValue(const pb::EnumDescriptor* type, absl::string_view name) {
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->name() == name || ShortName(type->value(i)) == name) {
      return type->value(i);
    }
  }
  return nullptr;
}

}  // namespace forkd::cli
