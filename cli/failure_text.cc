#include "cli/failure_text.h"

#include <google/rpc/code.pb.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "cli/field_flags.h"
#include "cli/value_text.h"

namespace forkd::cli {
namespace {

struct Advice {
  absl::string_view reason;
  absl::string_view text;
};

// What a person does next, where the daemon's message, which does not know of forkctl, cannot say it.
constexpr Advice kAdvice[] = {
    {"SNAPSHOT_UNKNOWN", "`forkctl snapshot list` shows the snapshots that there are"},
    {"SANDBOX_UNKNOWN", "`forkctl sandbox list` shows the sandboxes that there are"},
    {"SANDBOX_NOT_RUNNING", "`forkctl sandbox get ID` shows its state; a paused one goes on with `forkctl sandbox resume ID`"},
    {"SNAPSHOT_HAS_DEPENDENTS", "delete those first, or use --cascade or --force"},
    {"SNAPSHOT_DAMAGED", "delete the snapshot and create it again"},
    {"TAG_TAKEN", "choose another tag, or `forkctl snapshot delete TAG`"},
    {"IMAGE_UNKNOWN", "`forkctl host` shows the images that there are"},
    {"HOST_MISSING", "`forkctl doctor` shows what this host lacks and what to do"},
    {"MEMORY_EXHAUSTED", "delete sandboxes, or wait"},
};

}  // namespace

std::string FailureText(const grpc::Status& status, const google::protobuf::Descriptor* request, const std::string& address) {
  const auto code = static_cast<google::rpc::Code>(status.error_code());
  const std::string code_name = google::rpc::Code_IsValid(code) ? google::rpc::Code_Name(code) : absl::StrCat(status.error_code());
  google::rpc::Status details;
  // Details that do not parse are as good as none: the code and the message still stand.
  if (!details.ParseFromString(status.error_details())) {
    details.Clear();
  }

  std::string reason;
  std::string lines;
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo retry;
    google::rpc::PreconditionFailure precondition;
    google::rpc::ResourceInfo resource;
    if (any.UnpackTo(&info)) {
      reason = info.reason();
    } else if (any.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) {
        absl::StrAppend(&lines, "  ", Printable(ArgumentName(request, violation.field()), false), ": ",
                        Printable(violation.description(), false), "\n");
      }
    } else if (any.UnpackTo(&precondition)) {
      for (const auto& violation : precondition.violations()) {
        absl::StrAppend(&lines, "  ", Printable(violation.subject(), false), ": ", Printable(violation.description(), false), "\n");
      }
    } else if (any.UnpackTo(&retry)) {
      absl::StrAppendFormat(&lines, "  try again in %.1f s\n",
                            static_cast<double>(retry.retry_delay().seconds()) + retry.retry_delay().nanos() / 1e9);
    } else if (any.UnpackTo(&resource)) {
      // The message names it already.
    }
  }

  std::string text = absl::StrCat("forkctl: ", Printable(status.error_message(), /*multi_line=*/true), " (", code_name,
                                  reason.empty() ? "" : " ", Printable(reason, false), ")\n", lines);
  for (const Advice& advice : kAdvice) {
    if (advice.reason == reason) {
      absl::StrAppend(&text, "  ", advice.text, "\n");
    }
  }
  if (reason.empty()) {
    // Not a word of forkd's: the channel itself, or another server.
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      absl::StrAppend(&text, "  is forkd-controller running, and does it listen on ", address,
                      "? Start it with `forkd-controller serve`, or name another with --address or FORKD_ADDRESS\n");
    } else if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      absl::StrAppend(&text, "  the call took longer than --timeout allows\n");
    } else if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
      absl::StrAppend(&text, "  the server on ", address, " does not know this call: it is no forkd-controller, or one of another version\n");
    }
  }
  return text;
}

}  // namespace forkd::cli
