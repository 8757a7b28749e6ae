#include "server/gateway/error_to_http.h"

#include <cstdint>

#include <google/protobuf/message.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/gateway/json_tree.h"

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

// gRPC code → HTTP status and name; google/rpc/code.proto, with the contract's 409 for states that do not allow a call.
struct CodeRow {
  grpc::StatusCode code;
  int http_status;
  const char* name;
};
constexpr CodeRow kCodes[] = {
    {grpc::StatusCode::CANCELLED, 499, "CANCELLED"},
    {grpc::StatusCode::UNKNOWN, 500, "UNKNOWN"},
    {grpc::StatusCode::INVALID_ARGUMENT, 400, "INVALID_ARGUMENT"},
    {grpc::StatusCode::DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"},
    {grpc::StatusCode::NOT_FOUND, 404, "NOT_FOUND"},
    {grpc::StatusCode::ALREADY_EXISTS, 409, "ALREADY_EXISTS"},
    {grpc::StatusCode::PERMISSION_DENIED, 403, "PERMISSION_DENIED"},
    {grpc::StatusCode::RESOURCE_EXHAUSTED, 429, "RESOURCE_EXHAUSTED"},
    {grpc::StatusCode::FAILED_PRECONDITION, 409, "FAILED_PRECONDITION"},
    {grpc::StatusCode::ABORTED, 409, "ABORTED"},
    {grpc::StatusCode::OUT_OF_RANGE, 400, "OUT_OF_RANGE"},
    {grpc::StatusCode::UNIMPLEMENTED, 501, "UNIMPLEMENTED"},
    {grpc::StatusCode::INTERNAL, 500, "INTERNAL"},
    {grpc::StatusCode::UNAVAILABLE, 503, "UNAVAILABLE"},
    {grpc::StatusCode::DATA_LOSS, 500, "DATA_LOSS"},
    {grpc::StatusCode::UNAUTHENTICATED, 401, "UNAUTHENTICATED"},
};

// Reason (and method; empty: any) → HTTP status, and how `error` begins. {X} is a variable of the message or the path; where one is missing, the
// message stands alone. "{message}" goes on with our own words. The first row that fits counts.
struct ReasonRow {
  const char* reason;
  const char* method;  // short name
  int http_status;  // 0: as the code says
  const char* words;
};
constexpr ReasonRow kReasons[] = {
    // A taken tag is a bad request where a snapshot is made from scratch, a conflict where one is branched.
    {"TAG_TAKEN", "CreateSnapshot", 400, "{message}"},
    {"TAG_TAKEN", "", 409, "{message}"},
    {"SNAPSHOT_HAS_DEPENDENTS", "", 409, "{message}"},
    {"SNAPSHOT_NOT_READY", "CreateSandboxes", 409, "snapshot `{snapshot_tag}` is not bootable: {message}"},
    {"SNAPSHOT_DAMAGED", "CreateSandboxes", 409, "snapshot `{snapshot_tag}` is not bootable: {message}"},
    {"SNAPSHOT_INCOMPATIBLE", "CreateSandboxes", 409, "snapshot `{snapshot_tag}` is not bootable: {message}"},
    // Clients retry a full house as 503.
    {"LIMIT_REACHED", "BranchSandbox", 503, "{message}"},
    {"MEMORY_EXHAUSTED", "", 503, "{message}"},
    {"HOST_LIMIT", "", 503, "{message}"},
    {"DISK_FULL", "", 507, "{message}"},
    // A file operation that the guest refused says what the guest said; its code decides.
    {"GUEST_FILE", "", 0, "{message}"},
    // Clients poll ping until it no longer ends in 5xx, and take "HTTP 4" for final.
    {"AGENT_UNREACHABLE", "PingSandbox", 500, "ping: {message}"},
    {"AGENT_PROTOCOL", "PingSandbox", 500, "ping: {message}"},
    {"SANDBOX_NOT_RUNNING", "PingSandbox", 500, "ping: {message}"},
    {"AGENT_UNREACHABLE", "Exec", 500, "exec: {message}"},
    {"AGENT_PROTOCOL", "Exec", 500, "exec: {message}"},
    {"AGENT_UNREACHABLE", "Eval", 500, "eval: {message}"},
    {"AGENT_PROTOCOL", "Eval", 500, "eval: {message}"},
    {"AGENT_UNREACHABLE", "CreateSnapshot", 500, "snapshot: {message}"},
    {"AGENT_UNREACHABLE", "CreateSandboxes", 500, "restore_many: {message}"},
    {"VMM_FAILED", "CreateSnapshot", 500, "snapshot: {message}"},
    {"VMM_FAILED", "CreateSandboxes", 500, "restore_many: {message}"},
    {"VMM_FAILED", "BranchSandbox", 500, "branch: {message}"},
    {"VMM_PROTOCOL", "CreateSnapshot", 500, "snapshot: {message}"},
    {"VMM_PROTOCOL", "CreateSandboxes", 500, "restore_many: {message}"},
    {"VMM_PROTOCOL", "BranchSandbox", 500, "branch: {message}"},
};

// No sandbox has an id that is none: an id in the path that does not parse is an unknown one.
constexpr const char* kPathIds[] = {"id", "start.id"};

struct Details {
  google::rpc::Status status;
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad_request;
  google::rpc::RetryInfo retry;
  bool has_retry = false;
};

Details Unpack(const grpc::Status& status) {
  Details details;
  // Bytes that are no google.rpc.Status come from no server of ours: then there are no details.
  if (!details.status.ParseFromString(status.error_details())) { details.status.Clear(); }
  for (const pb::Any& any : details.status.details()) {
    if (any.Is<google::rpc::ErrorInfo>()) { any.UnpackTo(&details.info); }
    if (any.Is<google::rpc::BadRequest>()) { any.UnpackTo(&details.bad_request); }
    if (any.Is<google::rpc::RetryInfo>()) { details.has_retry = any.UnpackTo(&details.retry); }
  }
  return details;
}

JsonTree DetailsTree(const google::rpc::Status& status) {
  JsonTree list = JsonTree::array();
  for (const pb::Any& any : status.details()) {
    JsonTree one = {{"@type", any.type_url()}};
    const std::string name(any.type_url().substr(any.type_url().rfind('/') + 1));
    const pb::Descriptor* type = pb::DescriptorPool::generated_pool()->FindMessageTypeByName(name);
    if (type != nullptr) {
      std::unique_ptr<pb::Message> message(pb::MessageFactory::generated_factory()->GetPrototype(type)->New());
      if (message->ParseFromString(any.value())) { one.update(ProtoToTree(*message)); }
    }
    list.push_back(std::move(one));
  }
  return list;
}

const CodeRow& RowOf(grpc::StatusCode code) {
  for (const CodeRow& row : kCodes) {
    if (row.code == code) { return row; }
  }
  return kCodes[1];
}

absl::string_view ShortName(absl::string_view method) { return method.substr(method.rfind('.') + 1); }

const ReasonRow* RowOf(absl::string_view reason, absl::string_view method) {
  for (const ReasonRow& row : kReasons) {
    if (reason == row.reason && (row.method[0] == '\0' || ShortName(method) == row.method)) { return &row; }
  }
  return nullptr;
}

// `message` where a variable of `words` is unknown.
std::string FillIn(absl::string_view words, const Details& details, const std::string& message) {
  std::string text;
  while (!words.empty()) {
    const std::size_t open = words.find('{');
    absl::StrAppend(&text, words.substr(0, open));
    if (open == absl::string_view::npos) { break; }
    const std::size_t close = words.find('}', open);
    const std::string name(words.substr(open + 1, close - open - 1));
    words.remove_prefix(close + 1);
    if (name == "message") {
      text += message;
      continue;
    }
    const auto variable = details.info.metadata().find(name == "snapshot_tag" && details.info.metadata().count(name) == 0 ? "tag" : name);
    if (variable == details.info.metadata().end()) { return message; }
    text += variable->second;
  }
  return text;
}

struct Outward {
  int http_status = 500;
  std::string words;
};

Outward OutwardOf(const grpc::Status& status, const Details& details, absl::string_view method, const std::vector<HttpTemplate::Binding>& path) {
  Outward outward{RowOf(status.error_code()).http_status, status.error_message()};
  if (details.info.reason() == "INVALID_FIELD" && details.bad_request.field_violations_size() > 0) {
    const google::rpc::BadRequest::FieldViolation& violation = details.bad_request.field_violations(0);
    for (const HttpTemplate::Binding& binding : path) {
      for (const char* id : kPathIds) {
        if (binding.field_path == id && violation.field() == id) { return {404, absl::StrCat("sandbox ", binding.value, " not found")}; }
      }
    }
    // "n: n must be ≥ 1" is for gRPC; the contract's words begin after the field.
    outward.words = violation.description();
    return outward;
  }
  const ReasonRow* row = RowOf(details.info.reason(), method);
  if (row == nullptr) { return outward; }
  if (row->http_status != 0) { outward.http_status = row->http_status; }
  outward.words = FillIn(row->words, details, status.error_message());
  return outward;
}

JsonTree Body(absl::string_view words, absl::string_view code, absl::string_view reason, absl::string_view message, JsonTree details,
              absl::string_view request_id) {
  return {{"error", std::string(words)},     {"code", std::string(code)},      {"reason", std::string(reason)},
          {"message", std::string(message)}, {"details", std::move(details)}, {"request_id", std::string(request_id)}};
}

HttpReply JsonReply(int http_status, const JsonTree& body) {
  HttpReply reply;
  reply.status = http_status;
  reply.headers.emplace_back("Content-Type", "application/json");
  reply.body = Dump(body);
  return reply;
}

// Names for refusals that never were calls, so that `code` is always there.
absl::string_view CodeOfHttp(int http_status) {
  switch (http_status) {
    case 401: return "UNAUTHENTICATED";
    case 403: return "PERMISSION_DENIED";
    case 404: return "NOT_FOUND";
    case 405: return "UNIMPLEMENTED";
    case 408: return "DEADLINE_EXCEEDED";
    case 429: return "RESOURCE_EXHAUSTED";
    case 500: return "INTERNAL";
    case 501: return "UNIMPLEMENTED";
    case 503: return "UNAVAILABLE";
    default: return "INVALID_ARGUMENT";
  }
}

}  // namespace

HttpReply ErrorReply(const grpc::Status& status, absl::string_view method, const std::vector<HttpTemplate::Binding>& path,
                     absl::string_view request_id) {
  const Details details = Unpack(status);
  const Outward outward = OutwardOf(status, details, method, path);
  HttpReply reply = JsonReply(outward.http_status, Body(outward.words, RowOf(status.error_code()).name, details.info.reason(),
                                                        status.error_message(), DetailsTree(details.status), request_id));
  if (outward.http_status == 429 || outward.http_status == 503) {
    // Whole seconds, rounded up, never 0: a client that obeys must not spin.
    std::int64_t seconds = 1;
    if (details.has_retry) {
      seconds = details.retry.retry_delay().seconds() + (details.retry.retry_delay().nanos() > 0 ? 1 : 0);
      if (seconds < 1) { seconds = 1; }
    }
    reply.headers.emplace_back("Retry-After", absl::StrCat(seconds));
  }
  if (outward.http_status == 401) { reply.headers.emplace_back("WWW-Authenticate", "Bearer"); }
  return reply;
}

std::string ErrorLine(const grpc::Status& status, absl::string_view method, absl::string_view request_id) {
  const Details details = Unpack(status);
  const Outward outward = OutwardOf(status, details, method, {});
  return Dump(Body(outward.words, RowOf(status.error_code()).name, details.info.reason(), status.error_message(), DetailsTree(details.status), request_id));
}

HttpReply RefusalReply(int http_status, absl::string_view text, absl::string_view request_id) {
  return JsonReply(http_status, Body(text, CodeOfHttp(http_status), "", text, JsonTree::array(), request_id));
}

HttpReply RejectionReply(const Rejection& rejection, absl::string_view request_id) {
  JsonTree details = JsonTree::array();
  if (!rejection.field.empty()) {
    details.push_back({{"@type", "type.googleapis.com/google.rpc.BadRequest"},
                       {"field_violations", JsonTree::array({{{"field", rejection.field}, {"description", rejection.text}}})}});
  }
  return JsonReply(rejection.http_status,
                   Body(rejection.text, "INVALID_ARGUMENT", "INVALID_FIELD", rejection.text, std::move(details), request_id));
}

}  // namespace forkd::gateway
