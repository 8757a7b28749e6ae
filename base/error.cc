#include "base/error.h"

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"

namespace forkd {
namespace {

constexpr std::size_t kMaxMetaBytes = 256;
constexpr std::size_t kMaxQuotedBytes = 80;

template <typename Message>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", Message::descriptor()->full_name());
}

template <typename Message>
void Attach(absl::Status& status, const Message& message) {
  // By string_view: Cord's constructor from std::string&& is mangled differently by g++, which built Debian's Abseil, and clang 19.
  const std::string bytes = message.SerializeAsString();
  status.SetPayload(TypeUrl<Message>(), absl::Cord(absl::string_view(bytes)));
}

template <typename Message>
std::optional<Message> Detail(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(TypeUrl<Message>());
  Message message;
  if (!payload.has_value() || !message.ParseFromString(std::string(*payload))) { return std::nullopt; }
  return message;
}

}  // namespace

absl::string_view ReasonName(Reason reason) {
  switch (reason) {
#define FORKD_REASON_CASE(name, text) \
  case Reason::name: return text;
    FORKD_REASONS(FORKD_REASON_CASE)
#undef FORKD_REASON_CASE
  }
  return "INTERNAL";
}

struct Error::Details {
  absl::StatusCode code;
  std::string message;
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad_request;
  google::rpc::RetryInfo retry;
  google::rpc::ResourceInfo resource;
};

Error::Error(absl::StatusCode code, Reason reason, absl::string_view message) : details_(std::make_unique<Details>()) {
  details_->code = code;
  details_->message = std::string(message);
  details_->info.set_domain("forkd");
  details_->info.set_reason(std::string(ReasonName(reason)));
}

Error::~Error() = default;

Error& Error::Meta(absl::string_view key, absl::string_view value) {
  (*details_->info.mutable_metadata())[std::string(key)] = absl::Utf8SafeCHexEscape(value.substr(0, kMaxMetaBytes));
  return *this;
}

Error& Error::Field(absl::string_view path, absl::string_view description) {
  google::rpc::BadRequest::FieldViolation* violation = details_->bad_request.add_field_violations();
  violation->set_field(std::string(path));
  violation->set_description(std::string(description));
  return *this;
}

Error& Error::RetryAfter(std::chrono::milliseconds delay) {
  details_->retry.mutable_retry_delay()->set_seconds(delay.count() / 1000);
  details_->retry.mutable_retry_delay()->set_nanos(static_cast<int>(delay.count() % 1000) * 1'000'000);
  return *this;
}

Error& Error::Resource(absl::string_view type, absl::string_view name) {
  details_->resource.set_resource_type(std::string(type));
  details_->resource.set_resource_name(absl::Utf8SafeCHexEscape(name.substr(0, kMaxMetaBytes)));
  return *this;
}

Error::operator absl::Status() const {
  absl::Status status(details_->code, details_->message);
  Attach(status, details_->info);
  if (details_->bad_request.field_violations_size() > 0) { Attach(status, details_->bad_request); }
  if (details_->retry.has_retry_delay()) { Attach(status, details_->retry); }
  if (!details_->resource.resource_type().empty()) { Attach(status, details_->resource); }
  return status;
}

absl::Status InvalidField(absl::string_view field_path, absl::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, Reason::kInvalidField, absl::StrCat(field_path, ": ", message))
      .Meta("field", field_path)
      .Field(field_path, message);
}

absl::Status ErrnoError(int saved_errno, absl::string_view what) {
  absl::StatusCode code = absl::StatusCode::kInternal;
  Reason reason = Reason::kSystemCall;
  switch (saved_errno) {
    case EACCES:
    case EPERM: code = absl::StatusCode::kPermissionDenied; break;
    case ENOENT: code = absl::StatusCode::kNotFound; break;
    case ENOSPC:
    case EDQUOT:
      code = absl::StatusCode::kResourceExhausted;
      reason = Reason::kDiskFull;
      break;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EAGAIN:
      code = absl::StatusCode::kResourceExhausted;
      reason = Reason::kHostLimit;
      break;
    default: break;
  }
  std::array<char, 128> text{};
  // GNU strerror_r may answer with a static string instead of using the buffer.
  const char* said = strerror_r(saved_errno, text.data(), text.size());
  return Error(code, reason, absl::StrCat(what, ": ", said)).Meta("errno", absl::StrCat(saved_errno));
}

std::string ReasonOf(const absl::Status& status) {
  const std::optional<google::rpc::ErrorInfo> info = Detail<google::rpc::ErrorInfo>(status);
  return info.has_value() ? info->reason() : std::string();
}

std::optional<std::chrono::milliseconds> RetryAfterOf(const absl::Status& status) {
  const std::optional<google::rpc::RetryInfo> retry = Detail<google::rpc::RetryInfo>(status);
  if (!retry.has_value()) { return std::nullopt; }
  return std::chrono::milliseconds(retry->retry_delay().seconds() * 1000 + retry->retry_delay().nanos() / 1'000'000);
}

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) { return status; }
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&annotated](absl::string_view url, const absl::Cord& payload) { annotated.SetPayload(url, payload); });
  return annotated;
}

std::string Quoted(absl::string_view value) {
  const absl::string_view kept = value.substr(0, kMaxQuotedBytes);
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(kept), kept.size() < value.size() ? "…\"" : "\"");
}

}  // namespace forkd
