#include "server/gateway/gateway.h"

#include <algorithm>
#include <utility>

#include <boost/asio/ip/address.hpp>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "proto/forkd/v1/options.pb.h"
#include "server/gateway/contract.h"
#include "server/gateway/enum_text.h"
#include "server/gateway/error_to_http.h"
#include "server/gateway/grpc_stream.h"
#include "server/gateway/http_server.h"
#include "server/gateway/json_to_proto.h"
#include "server/gateway/proto_to_json.h"
#include "server/gateway/request_origin.h"
#include "server/gateway/route_table.h"

namespace forkd::gateway {
namespace pb = google::protobuf;
namespace {

// How long a stream's first message is waited for before the head of the answer leaves: an error that comes at once still gets its own status.
constexpr std::chrono::milliseconds kFirstMessage{250};
// Comments that keep an idle event stream open through proxies.
constexpr std::chrono::seconds kKeepAlive{15};
// One message of a raw upload.
constexpr std::size_t kUploadPieceBytes = 256 * 1024;

using MessagePtr = std::shared_ptr<pb::Message>;

enum class StreamFormat { kLines, kEvents, kRaw };

absl::string_view MediaType(absl::string_view header) { return absl::StripAsciiWhitespace(header.substr(0, header.find(';'))); }

bool IsJson(absl::string_view media_type) {
  return absl::EqualsIgnoreCase(media_type, "application/json") ||
         (absl::StartsWithIgnoreCase(media_type, "application/") && absl::EndsWithIgnoreCase(media_type, "+json"));
}

bool Accepts(const HttpRequest& request, absl::string_view media_type) {
  for (const absl::string_view one : absl::StrSplit(request.Header("Accept"), ',')) {
    if (absl::EqualsIgnoreCase(MediaType(one), media_type)) { return true; }
  }
  return false;
}

const v1::CallOptions& OptionsOf(const pb::MethodDescriptor* method) { return method->options().GetExtension(v1::call); }

// The bytes field that carries a streamed file, where the contract says that there is one.
const pb::FieldDescriptor* RawField(const pb::Descriptor* type, const std::string& name) {
  const pb::FieldDescriptor* field = name.empty() ? nullptr : type->FindFieldByName(name);
  return field != nullptr && field->type() == pb::FieldDescriptor::TYPE_BYTES && !field->is_repeated() ? field : nullptr;
}

// The status of a success, as the method's http_reply says.
int SuccessStatus(const pb::MethodDescriptor* method, const pb::Message& response) {
  const v1::HttpReply& reply = OptionsOf(method).http_reply();
  if (!reply.accepted_field().empty()) {
    const pb::FieldDescriptor* field = response.GetDescriptor()->FindFieldByName(reply.accepted_field());
    if (field != nullptr && field->cpp_type() == pb::FieldDescriptor::CPPTYPE_ENUM && !field->is_repeated() &&
        EnumText(response.GetReflection()->GetEnum(response, field)) == reply.accepted_value()) {
      return 202;
    }
  }
  return reply.status() == 0 ? 200 : reply.status();
}

HttpReply JsonReply(int status, std::string body) {
  HttpReply reply;
  reply.status = status;
  reply.headers.emplace_back("Content-Type", "application/json");
  reply.body = std::move(body);
  return reply;
}

// What one request has become by the time its body is there.
struct Transcoded {
  const Route* route = nullptr;
  std::vector<HttpTemplate::Binding> path;
  // The request message with path and query in it; the body is still to come.
  MessagePtr request;
  bool raw_body = false;
};

}  // namespace

absl::Status CheckLoopback(const std::string& bind) {
  std::string host = bind.substr(0, bind.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') { host = host.substr(1, host.size() - 2); }
  boost::system::error_code error;
  const boost::asio::ip::address address = boost::asio::ip::make_address(host, error);
  if (error) { return InvalidField("bind", absl::StrCat(Quoted(bind), " is no ADDRESS:PORT (a numeric address; [..] around IPv6)")); }
  if (address.is_loopback()) { return absl::OkStatus(); }
  return Error(absl::StatusCode::kInvalidArgument, Reason::kInvalidField,
               absl::StrCat("refusing unauthenticated non-loopback bind ", bind,
                            "; pass --token-file or bind to 127.0.0.1/::1 for local-only use"))
      .Field("bind", "is not loopback");
}

struct Gateway::Impl : public HttpHandler {
  Impl(Executor executor_in, std::shared_ptr<grpc::Channel> channel, GatewayOptions options_in)
      : executor(executor_in), options(std::move(options_in)), stub(std::move(channel)) {}

  // HttpHandler:
  Admission Admit(const HttpRequest& request) override;
  HttpReply Refuse(int http_status, absl::string_view text, absl::string_view request_id) override {
    return RefusalReply(http_status, text, request_id);
  }

  // Paths that are no method of the contract. Empty: not one of them.
  std::optional<HttpReply> Fixed(const HttpRequest& request) const;
  Admission AdmitCall(const HttpRequest& request, RouteMatch match);

  static Task<void> Unary(Impl* self, Transcoded call, HttpRequest request, HttpResponder* responder);
  static Task<void> ServerStream(Impl* self, Transcoded call, HttpRequest request, HttpResponder* responder);
  static Task<void> ClientStream(Impl* self, Transcoded call, HttpRequest request, HttpResponder* responder);

  // Puts the body, if the route has one, into the request message.
  std::optional<Rejection> FinishRequest(const Transcoded& call, absl::string_view body, pb::Message* message) const;
  // The messages of a client stream.
  std::optional<Rejection> Messages(const Transcoded& call, const HttpRequest& request, std::vector<std::string>* messages) const;
  std::shared_ptr<GrpcStream> StartCall(const Transcoded& call, const HttpRequest& request, HttpResponder* responder);
  // The answer of a call that has one message.
  HttpReply Answer(const Transcoded& call, const std::optional<std::string>& bytes, const grpc::Status& status, const std::string& request_id) const;

  // Constant after Start.
  const Executor executor;
  const GatewayOptions options;
  grpc::GenericStub stub;
  std::unique_ptr<Contract> contract;
  RouteTable routes;
  std::unique_ptr<HttpServer> server;
};

HttpHandler::Admission Gateway::Impl::Admit(const HttpRequest& request) {
  Admission admission;
  if (!IsLocalHost(request.Header("Host"), server->port())) {
    admission.refusal = RefusalReply(421, "Host is not this daemon: without a token only loopback addresses and localhost, with its port, are answered",
                                     request.request_id);
    return admission;
  }
  if (request.HasHeader("Origin") && !IsOwnOrigin(request.Header("Origin"), server->port())) {
    admission.refusal = RefusalReply(403, "requests from pages of other origins are refused", request.request_id);
    return admission;
  }
  if (std::optional<HttpReply> fixed = Fixed(request)) {
    admission.refusal = std::move(fixed);
    return admission;
  }
  RouteMatch match = routes.Find(request.verb, request.path);
  switch (match.kind) {
    case RouteMatch::Kind::kFound: return AdmitCall(request, std::move(match));
    case RouteMatch::Kind::kNotFound:
      admission.refusal = RefusalReply(404, absl::StrCat("no such path: ", request.path.substr(0, 200)), request.request_id);
      break;
    case RouteMatch::Kind::kInvalidPath:
      admission.refusal = RefusalReply(400, "Invalid URL: Invalid UTF-8 in the path, or a broken escape", request.request_id);
      break;
    case RouteMatch::Kind::kMethodNotAllowed:
      admission.refusal = RefusalReply(405, absl::StrCat(request.verb.substr(0, 40), " is not allowed here; allowed: ", match.allow), request.request_id);
      admission.refusal->headers.emplace_back("Allow", match.allow);
      break;
  }
  return admission;
}

std::optional<HttpReply> Gateway::Impl::Fixed(const HttpRequest& request) const {
  HttpReply reply;
  if (request.path == "/healthz") {
    reply = JsonReply(200, "{\"ok\":true}");
  } else if (request.path == "/version") {
    reply = JsonReply(200, absl::StrCat("{\"version\":\"", options.version, "\",\"api\":\"v1\"}"));
  } else {
    return std::nullopt;
  }
  if (request.verb != "GET" && request.verb != "HEAD") {
    reply = RefusalReply(405, "only GET and HEAD are allowed here", request.request_id);
    reply.headers.emplace_back("Allow", "GET,HEAD");
  }
  return reply;
}

HttpHandler::Admission Gateway::Impl::AdmitCall(const HttpRequest& request, RouteMatch match) {
  Admission admission;
  const Route& route = *match.route;
  const pb::MethodDescriptor* method = route.method;
  if (method->client_streaming() && method->server_streaming()) {
    admission.refusal = RefusalReply(426, "this call goes both ways: it needs gRPC", request.request_id);
    return admission;
  }
  Transcoded call;
  call.route = &route;
  call.path = std::move(match.bindings);
  call.request = contract->NewMessage(method->input_type());
  const absl::string_view media_type = MediaType(request.Header("Content-Type"));
  call.raw_body = method->client_streaming() && RawField(method->input_type(), OptionsOf(method).cli().input_field()) != nullptr &&
                  absl::EqualsIgnoreCase(media_type, "application/octet-stream");

  std::optional<Rejection> rejection = BindPath(call.path, call.request.get());
  // With `body: "*"` all that is not in the path is in the body; a raw body has no room for it.
  if (!rejection.has_value() && (route.body != BodyUse::kMessage || call.raw_body)) {
    std::vector<std::string> taken;
    for (const HttpTemplate::Binding& binding : call.path) { taken.push_back(binding.field_path); }
    if (route.body_field != nullptr) { taken.push_back(route.body_field->name()); }
    rejection = BindQuery(request.query, taken, call.request.get());
  }
  if (!rejection.has_value() && route.body != BodyUse::kNone && !call.raw_body && !IsJson(media_type) &&
      !(method->client_streaming() && absl::EqualsIgnoreCase(media_type, "application/x-ndjson"))) {
    rejection = Rejection{415, "Expected request with `Content-Type: application/json`", ""};
  }
  if (rejection.has_value()) {
    admission.refusal = RejectionReply(*rejection, request.request_id);
    return admission;
  }
  admission.wants_body = route.body != BodyUse::kNone;
  admission.handle = [this, call = std::move(call)](HttpRequest whole, HttpResponder* responder) mutable {
    const pb::MethodDescriptor* called = call.route->method;
    if (called->server_streaming()) { return ServerStream(this, std::move(call), std::move(whole), responder); }
    if (called->client_streaming()) { return ClientStream(this, std::move(call), std::move(whole), responder); }
    return Unary(this, std::move(call), std::move(whole), responder);
  };
  return admission;
}

std::optional<Rejection> Gateway::Impl::FinishRequest(const Transcoded& call, absl::string_view body, pb::Message* message) const {
  if (call.route->body == BodyUse::kNone) { return std::nullopt; }
  std::vector<std::string> taken;
  for (const HttpTemplate::Binding& binding : call.path) { taken.push_back(binding.field_path); }
  if (std::optional<Rejection> rejection = BindBody(body, call.route->body_field, taken, message)) { return rejection; }
  // Where the body names a field of the path too, the path wins.
  return BindPath(call.path, message);
}

std::optional<Rejection> Gateway::Impl::Messages(const Transcoded& call, const HttpRequest& request, std::vector<std::string>* messages) const {
  const pb::MethodDescriptor* method = call.route->method;
  if (call.raw_body) {
    const pb::FieldDescriptor* field = RawField(method->input_type(), OptionsOf(method).cli().input_field());
    std::size_t at = 0;
    do {
      // The first message carries path and query as well.
      const std::unique_ptr<pb::Message> message = contract->NewMessage(method->input_type());
      if (at == 0) { message->CopyFrom(*call.request); }
      message->GetReflection()->SetString(message.get(), field, request.body.substr(at, kUploadPieceBytes));
      messages->push_back(message->SerializeAsString());
      at += kUploadPieceBytes;
    } while (at < request.body.size());
    return std::nullopt;
  }
  if (!absl::EqualsIgnoreCase(MediaType(request.Header("Content-Type")), "application/x-ndjson")) {
    if (std::optional<Rejection> rejection = FinishRequest(call, request.body, call.request.get())) { return rejection; }
    messages->push_back(call.request->SerializeAsString());
    return std::nullopt;
  }
  for (const absl::string_view line : absl::StrSplit(request.body, '\n', absl::SkipWhitespace())) {
    if (messages->empty()) {
      if (std::optional<Rejection> rejection = FinishRequest(call, line, call.request.get())) { return rejection; }
      messages->push_back(call.request->SerializeAsString());
      continue;
    }
    const std::unique_ptr<pb::Message> message = contract->NewMessage(method->input_type());
    // What is required is required of the stream's first message alone.
    std::vector<std::string> all;
    for (int i = 0; i < method->input_type()->field_count(); ++i) { all.push_back(method->input_type()->field(i)->name()); }
    if (std::optional<Rejection> rejection = BindBody(line, nullptr, all, message.get())) { return rejection; }
    messages->push_back(message->SerializeAsString());
  }
  return std::nullopt;
}

std::shared_ptr<GrpcStream> Gateway::Impl::StartCall(const Transcoded& call, const HttpRequest& request, HttpResponder* responder) {
  std::shared_ptr<GrpcStream> stream = GrpcStream::Make(executor, &stub, call.route->grpc_path);
  if (options.add_metadata) { options.add_metadata(request, stream->context()); }
  stream->Start();
  responder->OnGone([stream] { stream->Cancel(); });
  return stream;
}

HttpReply Gateway::Impl::Answer(const Transcoded& call, const std::optional<std::string>& bytes, const grpc::Status& status,
                                const std::string& request_id) const {
  const pb::MethodDescriptor* method = call.route->method;
  if (!status.ok()) { return ErrorReply(status, method->full_name(), call.path, request_id); }
  const std::unique_ptr<pb::Message> response = contract->NewMessage(method->output_type());
  if (!bytes.has_value() || !response->ParseFromString(*bytes)) {
    return ErrorReply(grpc::Status(grpc::StatusCode::INTERNAL, "the answer is not of the type that the contract says"), method->full_name(), {}, request_id);
  }
  const int http_status = SuccessStatus(method, *response);
  if (http_status == 204) {
    HttpReply empty;
    empty.status = 204;
    return empty;
  }
  return JsonReply(http_status, ProtoToJson(*response, call.route->response_field));
}

Task<void> Gateway::Impl::Unary(Impl* self, Transcoded call, HttpRequest request, HttpResponder* responder) {
  if (std::optional<Rejection> rejection = self->FinishRequest(call, request.body, call.request.get())) {
    co_await responder->Reply(RejectionReply(*rejection, request.request_id));
    co_return;
  }
  request.body.clear();
  const std::shared_ptr<GrpcStream> stream = self->StartCall(call, request, responder);
  co_await stream->Write(call.request->SerializeAsString(), /*last=*/true);
  const std::optional<std::string> bytes = co_await stream->Read();
  const grpc::Status status = co_await stream->Finish();
  responder->OnGone(nullptr);
  co_await responder->Reply(self->Answer(call, bytes, status, request.request_id));
}

Task<void> Gateway::Impl::ClientStream(Impl* self, Transcoded call, HttpRequest request, HttpResponder* responder) {
  std::vector<std::string> messages;
  if (std::optional<Rejection> rejection = self->Messages(call, request, &messages)) {
    co_await responder->Reply(RejectionReply(*rejection, request.request_id));
    co_return;
  }
  request.body.clear();
  const std::shared_ptr<GrpcStream> stream = self->StartCall(call, request, responder);
  for (std::string& message : messages) {
    // The call may end early: then its status says why.
    if (!co_await stream->Write(std::move(message), /*last=*/false)) { break; }
  }
  co_await stream->WritesDone();
  const std::optional<std::string> bytes = co_await stream->Read();
  const grpc::Status status = co_await stream->Finish();
  responder->OnGone(nullptr);
  co_await responder->Reply(self->Answer(call, bytes, status, request.request_id));
}

Task<void> Gateway::Impl::ServerStream(Impl* self, Transcoded call, HttpRequest request, HttpResponder* responder) {
  if (std::optional<Rejection> rejection = self->FinishRequest(call, request.body, call.request.get())) {
    co_await responder->Reply(RejectionReply(*rejection, request.request_id));
    co_return;
  }
  request.body.clear();
  const pb::MethodDescriptor* method = call.route->method;
  const pb::FieldDescriptor* raw = RawField(method->output_type(), OptionsOf(method).cli().output_field());
  StreamFormat format = StreamFormat::kLines;
  if (Accepts(request, "text/event-stream")) { format = StreamFormat::kEvents; }
  if (raw != nullptr && Accepts(request, "application/octet-stream")) { format = StreamFormat::kRaw; }

  const std::shared_ptr<GrpcStream> stream = self->StartCall(call, request, responder);
  co_await stream->Write(call.request->SerializeAsString(), /*last=*/true);
  HttpReply head;
  switch (format) {
    case StreamFormat::kLines: head.headers.emplace_back("Content-Type", "application/x-ndjson"); break;
    case StreamFormat::kEvents: head.headers.emplace_back("Content-Type", "text/event-stream"); break;
    case StreamFormat::kRaw: head.headers.emplace_back("Content-Type", "application/octet-stream"); break;
  }
  head.headers.emplace_back("Cache-Control", "no-store");
  const std::unique_ptr<pb::Message> message = self->contract->NewMessage(method->output_type());
  bool begun = false;
  bool client_there = true;
  bool garbled = false;
  while (client_there && !garbled) {
    const bool ready = co_await stream->Readable(Deadline::In(begun ? std::chrono::milliseconds(kKeepAlive) : kFirstMessage));
    if (!ready) {
      if (!std::exchange(begun, true)) {
        client_there = co_await responder->BeginStream(std::move(head));
        if (responder->IsHead()) { client_there = false; }
      } else if (format == StreamFormat::kEvents) {
        client_there = co_await responder->Write(": still here\n\n");
      }
      continue;
    }
    const std::optional<std::string> bytes = co_await stream->Read();
    if (!bytes.has_value()) { break; }
    if (!message->ParseFromString(*bytes)) {
      garbled = true;
      break;
    }
    if (!std::exchange(begun, true)) {
      client_there = co_await responder->BeginStream(std::move(head));
      if (responder->IsHead()) { client_there = false; }
      if (!client_there) { break; }
    }
    std::string piece;
    switch (format) {
      case StreamFormat::kLines: piece = absl::StrCat(ProtoToJson(*message, call.route->response_field), "\n"); break;
      case StreamFormat::kEvents: piece = absl::StrCat("data: ", ProtoToJson(*message, call.route->response_field), "\n\n"); break;
      case StreamFormat::kRaw: piece = message->GetReflection()->GetString(*message, raw); break;
    }
    client_there = co_await responder->Write(std::move(piece));
  }
  if (!client_there || garbled) { stream->Cancel(); }
  grpc::Status status = co_await stream->Finish();
  responder->OnGone(nullptr);
  if (garbled) { status = grpc::Status(grpc::StatusCode::INTERNAL, "the answer is not of the type that the contract says"); }
  if (!begun) {
    if (!status.ok()) {
      co_await responder->Reply(ErrorReply(status, method->full_name(), call.path, request.request_id));
      co_return;
    }
    client_there = co_await responder->BeginStream(std::move(head));
  }
  if (!client_there) {
    co_await responder->EndStream(/*complete=*/responder->IsHead());
    co_return;
  }
  if (!status.ok()) {
    // The status line has left: the error is the last line. Raw bytes have no place for one; cutting them off is all that says it.
    const std::string line = ErrorLine(status, method->full_name(), request.request_id);
    if (format == StreamFormat::kLines) { co_await responder->Write(absl::StrCat(line, "\n")); }
    if (format == StreamFormat::kEvents) { co_await responder->Write(absl::StrCat("event: error\ndata: ", line, "\n\n")); }
    co_await responder->EndStream(/*complete=*/format != StreamFormat::kRaw);
    co_return;
  }
  co_await responder->EndStream(/*complete=*/true);
}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Start(Executor executor, std::shared_ptr<grpc::Channel> channel, GatewayOptions options) {
  FORKD_RETURN_IF_ERROR(CheckLoopback(options.bind));
  auto impl = std::make_unique<Impl>(executor, std::move(channel), options);
  FORKD_ASSIGN_OR_RETURN(impl->contract, Contract::Load(options.contract != nullptr ? *options.contract : BuiltInContract()));
  FORKD_ASSIGN_OR_RETURN(impl->routes, RouteTable::Build(impl->contract->methods()));
  HttpServerOptions server;
  server.bind = options.bind;
  server.max_connections = options.max_connections;
  server.max_body_bytes = options.max_body_bytes;
  server.head_timeout = options.head_timeout;
  server.body_timeout = options.body_timeout;
  server.idle_timeout = options.idle_timeout;
  server.write_timeout = options.write_timeout;
  FORKD_ASSIGN_OR_RETURN(impl->server, HttpServer::Listen(executor, impl.get(), std::move(server)));
  impl->server->Serve();
  return std::unique_ptr<Gateway>(new Gateway(std::move(impl)));
}

Gateway::Gateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gateway::~Gateway() = default;
std::uint16_t Gateway::port() const { return impl_->server->port(); }
std::string Gateway::address() const { return impl_->server->address(); }
Task<void> Gateway::Stop() { co_await impl_->server->Stop(); }

}  // namespace forkd::gateway
