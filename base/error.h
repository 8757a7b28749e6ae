// Errors with machine-readable details. The code says what the caller can do, the reason which cause it is, the message what, which value and
// what to do. Details travel as payloads of absl::Status (google.rpc.ErrorInfo, BadRequest, RetryInfo, ResourceInfo, PreconditionFailure) and
// reach gRPC clients as google.rpc.Status, REST clients as `details`.
#ifndef FORKD_BASE_ERROR_H_
#define FORKD_BASE_ERROR_H_

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/reasons.h"

namespace forkd {

// Builds an error and converts to absl::Status:
//   return Error(absl::StatusCode::kNotFound, Reason::kSandboxUnknown, "sandbox \"x\" does not exist").Meta("id", "x");
// Copying is cheap enough for error paths; not thread-safe.
class Error {
 public:
  Error(absl::StatusCode code, Reason reason, absl::string_view message);
  ~Error();
  Error(const Error&) = delete;
  Error& operator=(const Error&) = delete;

  // A variable of the message again, for machines (ErrorInfo.metadata). Values are cut at 256 bytes.
  Error& Meta(absl::string_view key, absl::string_view value);
  // The request's field, as a path in proto names ("n", "policy.allow[3].cidr") (BadRequest).
  Error& Field(absl::string_view path, absl::string_view description);
  // When a retry makes sense (RetryInfo).
  Error& RetryAfter(std::chrono::milliseconds delay);
  // Kind ("snapshot", "sandbox", "image", "file") and name of the thing (ResourceInfo).
  Error& Resource(absl::string_view type, absl::string_view name);

  operator absl::Status() const;  // NOLINT(google-explicit-constructor): an error is returned where a Status is expected.

 private:
  struct Details;
  std::unique_ptr<Details> details_;
};

// INVALID_ARGUMENT with reason INVALID_FIELD for one field of a request: the most common error of all.
absl::Status InvalidField(absl::string_view field_path, absl::string_view message);

// The error of a failed system call. Codes: EACCES, EPERM → PERMISSION_DENIED; ENOENT → NOT_FOUND; ENOSPC, EDQUOT → RESOURCE_EXHAUSTED with
// reason DISK_FULL; EMFILE, ENFILE, ENOMEM, EAGAIN → RESOURCE_EXHAUSTED with reason HOST_LIMIT; the rest → INTERNAL with reason SYSTEM_CALL.
// `what` names the action and its object: `open "/dev/kvm"`.
absl::Status ErrnoError(int saved_errno, absl::string_view what);

// What `status` carries; empty/nullopt where it has no such detail.
std::string ReasonOf(const absl::Status& status);
std::optional<std::chrono::milliseconds> RetryAfterOf(const absl::Status& status);

// The same error with "context: " before its message; details are kept.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// Quotes `value` for a message: escaped (C style), cut at 80 bytes, in double quotes.
std::string Quoted(absl::string_view value);

}  // namespace forkd

#endif  // FORKD_BASE_ERROR_H_
