#include "guest/client/guest_status.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd::guest {
namespace {

constexpr std::size_t kMaxMessageBytes = 512;

bool IsFileMethod(absl::string_view method) {
  return method == "ReadFile" || method == "WriteFile" || method == "ListDirectory" || method == "StatFile" || method == "RemoveFile";
}

}  // namespace

absl::Status StatusFromGuest(absl::string_view method, const ttrpc::Status& status) {
  if (status.code() == 0) { return absl::OkStatus(); }
  const auto code = static_cast<absl::StatusCode>(status.code());
  const std::string text = absl::StrCat(method, " in the guest: ", absl::Utf8SafeCHexEscape(absl::string_view(status.message()).substr(0, kMaxMessageBytes)));
  const bool runner = method == "Eval" || method == "Warmup";
  switch (code) {
    case absl::StatusCode::kInvalidArgument: return Error(code, Reason::kInvalidField, text);
    case absl::StatusCode::kUnimplemented: return Error(code, Reason::kUnimplemented, text);
    case absl::StatusCode::kResourceExhausted: return Error(code, IsFileMethod(method) ? Reason::kGuestFile : Reason::kLimitReached, text);
    case absl::StatusCode::kCancelled: return Error(code, Reason::kCancelled, text);
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnavailable:
      if (runner) { return Error(code, Reason::kRunnerUnavailable, text); }
      [[fallthrough]];
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
      if (IsFileMethod(method)) { return Error(code, Reason::kGuestFile, text); }
      if (method == "SignalExec" && code == absl::StatusCode::kNotFound) { return Error(code, Reason::kInvalidField, text); }
      break;
    default: break;
  }
  return Error(absl::StatusCode::kUnavailable, Reason::kAgentProtocol, absl::StrCat(text, " (code ", status.code(), ")"));
}

bool HasFewFields(absl::string_view message, int limit) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(message.data()), static_cast<int>(message.size()));
  for (int count = 0; count <= limit; ++count) {
    const uint32_t tag = in.ReadTag();
    // The end, or malformed, which parsing itself will find.
    if (tag == 0 || !google::protobuf::internal::WireFormatLite::SkipField(&in, tag)) { return true; }
  }
  return false;
}

}  // namespace forkd::guest
