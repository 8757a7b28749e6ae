#include "server/gateway/http_server.h"

#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/async_event.h"
#include "base/error.h"
#include "base/runtime.h"
#include "server/gateway/http_head.h"
#include "server/gateway/request_id.h"

namespace forkd::gateway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using asio::as_tuple;
using asio::use_awaitable;
using boost::system::error_code;

constexpr std::size_t kReadBytes = 4096;
// A head, and as much of a body as Beast reads at a time.
constexpr std::size_t kMaxBufferBytes = kMaxHeadBytes + 64 * 1024;
// After a refusal, what the client still sends is read and dropped for so long, or the reset that closing causes could overtake the answer.
constexpr std::chrono::milliseconds kLinger{500};
constexpr std::size_t kMaxLingerBytes = 4 * 1024 * 1024;
// How long calls that run may go on after Stop.
constexpr std::chrono::seconds kDrain{5};

absl::string_view View(boost::core::string_view text) { return {text.data(), text.size()}; }
absl::string_view View(const beast::flat_buffer& buffer) {
  return {static_cast<const char*>(buffer.cdata().data()), buffer.size()};
}

std::string AddressText(const Tcp::endpoint& endpoint) {
  const std::string host = endpoint.address().to_string();
  return endpoint.address().is_v6() ? absl::StrCat("[", host, "]:", endpoint.port()) : absl::StrCat(host, ":", endpoint.port());
}

absl::StatusOr<Tcp::endpoint> ParseBind(const std::string& bind) {
  const std::size_t colon = bind.rfind(':');
  std::uint32_t port = 0;
  error_code error;
  if (colon != std::string::npos && absl::SimpleAtoi(bind.substr(colon + 1), &port) && port <= 65535) {
    std::string host = bind.substr(0, colon);
    const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
    if (bracketed) { host = host.substr(1, host.size() - 2); }
    const asio::ip::address address = asio::ip::make_address(host, error);
    if (!error && address.is_v6() == bracketed) { return Tcp::endpoint(address, static_cast<std::uint16_t>(port)); }
  }
  return InvalidField("bind", absl::StrCat(Quoted(bind), " is no ADDRESS:PORT (a numeric address; [..] around IPv6)"));
}

}  // namespace

class HttpServer::Impl : public std::enable_shared_from_this<HttpServer::Impl> {
 public:
  class Connection;

  Impl(Executor executor, HttpHandler* handler, HttpServerOptions options)
      : executor_(executor), handler_(handler), options_(std::move(options)), acceptor_(executor), accept_ended_(executor), empty_(executor) {
    empty_.Set();
  }

  absl::Status Listen();
  static Task<void> Accept(std::shared_ptr<Impl> self);
  Task<void> Stop();

  // What fixes its members' lifetime: constant after Listen.
  const Executor executor_;
  HttpHandler* const handler_;
  const HttpServerOptions options_;
  Tcp::endpoint endpoint_;

  // Executor:
  Tcp::acceptor acceptor_;
  std::set<std::shared_ptr<Connection>> connections_;
  bool stopping_ = false;
  AsyncEvent accept_ended_;
  AsyncEvent empty_;
};

// One client. Lives until its coroutine ends.
class HttpServer::Impl::Connection : public HttpResponder, public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Impl> server, Tcp::socket socket)
      : server_(std::move(server)), stream_(std::move(socket)), buffer_(kMaxBufferBytes), watch_ended_(server_->executor_) {
    error_code ignored;
    stream_.socket().set_option(Tcp::no_delay(true), ignored);
    const Tcp::endpoint peer = stream_.socket().remote_endpoint(ignored);
    peer_ = AddressText(peer);
  }

  static Task<void> Run(std::shared_ptr<Connection> self) {
    while (co_await self->OneRequest()) {}
    error_code ignored;
    self->stream_.socket().shutdown(Tcp::socket::shutdown_both, ignored);
    self->stream_.socket().close(ignored);
    Impl& server = *self->server_;
    server.connections_.erase(self);
    if (server.connections_.empty()) { server.empty_.Set(); }
  }

  // Server's stop: a connection between two requests ends at once, one in a call when the call has been answered.
  void StopWhenIdle() {
    if (!handling_) { Cut(); }
  }
  void Cut() {
    Gone();
    error_code ignored;
    stream_.socket().close(ignored);
  }

  // HttpResponder:
  Task<bool> Reply(HttpReply reply) override;
  Task<bool> BeginStream(HttpReply reply) override;
  Task<bool> Write(std::string piece) override;
  Task<void> EndStream(bool complete) override;
  void OnGone(absl::AnyInvocable<void()> fn) override {
    if (gone_ && fn) {
      fn();
      return;
    }
    on_gone_ = std::move(fn);
  }
  bool IsHead() const override { return is_head_; }

 private:
  using Parser = http::request_parser<http::string_body>;

  Task<bool> OneRequest();
  Task<bool> ReadHead(std::size_t* head_bytes);
  // True: the body is in `parser`. False: answered or gone; the connection ends.
  Task<bool> ReadBody(Parser* parser, const HttpRequest& request);
  Task<void> RefuseAndClose(int status, std::string text, std::string request_id);
  Task<void> Linger();
  static Task<void> Watch(std::shared_ptr<Connection> self);
  void Gone() {
    if (std::exchange(gone_, true)) { return; }
    if (on_gone_) { std::exchange(on_gone_, nullptr)(); }
  }
  void SetHeaders(http::fields* fields, const HttpReply& reply) const;
  template <typename Message>
  Task<bool> Send(Message message);

  const std::shared_ptr<Impl> server_;
  beast::basic_stream<Tcp, Executor> stream_;
  beast::flat_buffer buffer_;
  std::string peer_;
  AsyncEvent watch_ended_;
  absl::AnyInvocable<void()> on_gone_;
  bool gone_ = false;
  bool handling_ = false;
  // Of the request under way:
  bool is_head_ = false;
  bool keep_alive_ = true;
  unsigned version_ = 11;
  std::string request_id_;
};

void HttpServer::Impl::Connection::SetHeaders(http::fields* fields, const HttpReply& reply) const {
  for (const auto& [name, value] : reply.headers) { fields->insert(name, value); }
  fields->set(http::field::date, absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()));
  // A browser that is shown an answer must not guess that it is a page.
  fields->set("X-Content-Type-Options", "nosniff");
  if (!request_id_.empty()) { fields->set("X-Request-Id", request_id_); }
}

template <typename Message>
Task<bool> HttpServer::Impl::Connection::Send(Message message) {
  stream_.expires_after(server_->options_.write_timeout);
  auto [error, bytes] = co_await http::async_write(stream_, message, as_tuple(use_awaitable));
  stream_.expires_never();
  if (error) { Gone(); }
  co_return !error;
}

Task<bool> HttpServer::Impl::Connection::Reply(HttpReply reply) {
  const bool bodiless = reply.status == 204 || reply.status == 304;
  if (server_->stopping_) { keep_alive_ = false; }
  if (is_head_ || bodiless) {
    http::response<http::empty_body> message(http::int_to_status(static_cast<unsigned>(reply.status)), version_);
    message.result(static_cast<unsigned>(reply.status));
    SetHeaders(&message, reply);
    if (!bodiless) { message.content_length(reply.body.size()); }
    message.keep_alive(keep_alive_);
    co_return co_await Send(std::move(message));
  }
  http::response<http::string_body> message;
  message.result(static_cast<unsigned>(reply.status));
  message.version(version_);
  SetHeaders(&message, reply);
  message.body() = std::move(reply.body);
  message.content_length(message.body().size());
  message.keep_alive(keep_alive_);
  co_return co_await Send(std::move(message));
}

Task<bool> HttpServer::Impl::Connection::BeginStream(HttpReply reply) {
  if (version_ == 10 || server_->stopping_) { keep_alive_ = false; }
  http::response<http::empty_body> message;
  message.result(static_cast<unsigned>(reply.status));
  message.version(version_);
  SetHeaders(&message, reply);
  message.keep_alive(keep_alive_);
  if (version_ == 11) { message.chunked(true); }
  http::response_serializer<http::empty_body> serializer(message);
  stream_.expires_after(server_->options_.write_timeout);
  auto [error, bytes] = co_await http::async_write_header(stream_, serializer, as_tuple(use_awaitable));
  stream_.expires_never();
  if (error) {
    Gone();
    co_return false;
  }
  if (is_head_ || reply.body.empty()) { co_return true; }
  co_return co_await Write(std::move(reply.body));
}

Task<bool> HttpServer::Impl::Connection::Write(std::string piece) {
  if (gone_) { co_return false; }
  if (is_head_ || piece.empty()) { co_return true; }
  stream_.expires_after(server_->options_.write_timeout);
  error_code failed;
  if (version_ == 11) {
    auto chunk = http::make_chunk(asio::buffer(piece));
    auto [error, bytes] = co_await asio::async_write(stream_, chunk, as_tuple(use_awaitable));
    failed = error;
  } else {
    auto [error, bytes] = co_await asio::async_write(stream_, asio::buffer(piece), as_tuple(use_awaitable));
    failed = error;
  }
  stream_.expires_never();
  if (failed) { Gone(); }
  co_return !failed;
}

Task<void> HttpServer::Impl::Connection::EndStream(bool complete) {
  if (!complete) { keep_alive_ = false; }
  if (!complete || gone_ || is_head_ || version_ != 11) { co_return; }
  stream_.expires_after(server_->options_.write_timeout);
  auto last = http::make_chunk_last();
  auto [error, bytes] = co_await asio::async_write(stream_, last, as_tuple(use_awaitable));
  stream_.expires_never();
  if (error) { Gone(); }
}

Task<bool> HttpServer::Impl::Connection::ReadHead(std::size_t* head_bytes) {
  std::size_t checked = 0;
  bool begun = false;
  stream_.expires_after(server_->options_.idle_timeout);
  while (true) {
    // A client may put an empty line between two requests (RFC 9112, 2.2).
    while (!begun && View(buffer_).substr(0, 2) == "\r\n") { buffer_.consume(2); }
    if (!begun && buffer_.size() > 0 && View(buffer_) != "\r") {
      begun = true;
      stream_.expires_after(server_->options_.head_timeout);
    }
    const absl::string_view all = View(buffer_);
    // Only what is new, and the three bytes before it that an ending may have begun in.
    const std::size_t from = checked > 3 ? checked - 3 : 0;
    if (const std::optional<std::size_t> end = FindHeadEnd(all.substr(from)); end.has_value() && begun) {
      *head_bytes = from + *end;
      if (*head_bytes <= kMaxHeadBytes) {
        stream_.expires_never();
        co_return true;
      }
    } else if (begun) {
      // The last byte of what was there before may have been a CR whose LF is new.
      if (std::optional<HeadError> error = CheckUnfinishedHead(all, checked > 0 ? checked - 1 : 0)) {
        co_await RefuseAndClose(error->http_status, error->text, "");
        co_return false;
      }
    }
    if (all.size() > kMaxHeadBytes) {
      co_await RefuseAndClose(431, absl::StrCat("the request's head is longer than ", kMaxHeadBytes, " bytes"), "");
      co_return false;
    }
    checked = all.size();
    auto [error, bytes] = co_await stream_.async_read_some(buffer_.prepare(kReadBytes), as_tuple(use_awaitable));
    if (error) { co_return false; }  // closed, timed out (Beast has closed the socket then), or the server stops
    buffer_.commit(bytes);
  }
}

Task<void> HttpServer::Impl::Connection::RefuseAndClose(int status, std::string text, std::string request_id) {
  keep_alive_ = false;
  HttpReply reply = server_->handler_->Refuse(status, text, request_id);
  if (co_await Reply(std::move(reply))) { co_await Linger(); }
}

Task<void> HttpServer::Impl::Connection::Linger() {
  error_code ignored;
  stream_.socket().shutdown(Tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kLinger);
  buffer_.clear();
  std::size_t dropped = 0;
  while (dropped < kMaxLingerBytes) {
    auto [error, bytes] = co_await stream_.async_read_some(buffer_.prepare(kMaxHeadBytes), as_tuple(use_awaitable));
    if (error) { break; }
    dropped += bytes;
  }
}

Task<bool> HttpServer::Impl::Connection::ReadBody(Parser* parser, const HttpRequest& request) {
  const std::size_t limit = server_->options_.max_body_bytes;
  const bool too_long = parser->content_length().has_value() && *parser->content_length() > limit;
  constexpr char kTooLong[] = "Failed to buffer the request body: length limit exceeded";
  if (too_long) {
    co_await RefuseAndClose(413, kTooLong, request.request_id);
    co_return false;
  }
  parser->body_limit(limit);
  if (!request.Header("Expect").empty() && version_ == 11 && buffer_.size() == 0) {
    stream_.expires_after(server_->options_.write_timeout);
    auto [error, bytes] =
        co_await asio::async_write(stream_, asio::buffer(absl::string_view("HTTP/1.1 100 Continue\r\n\r\n").data(), 25), as_tuple(use_awaitable));
    if (error) { co_return false; }
  }
  stream_.expires_after(server_->options_.body_timeout);
  auto [error, bytes] = co_await http::async_read(stream_, buffer_, *parser, as_tuple(use_awaitable));
  if (!error) {
    stream_.expires_never();
    co_return true;
  }
  if (error == http::error::body_limit) {
    co_await RefuseAndClose(413, kTooLong, request.request_id);
  } else if (error.category() == make_error_code(http::error::bad_chunk).category() && error != http::error::partial_message &&
             error != http::error::end_of_stream) {
    co_await RefuseAndClose(400, absl::StrCat("malformed request body: ", error.message()), request.request_id);
  }
  co_return false;
}

Task<void> HttpServer::Impl::Connection::Watch(std::shared_ptr<Connection> self) {
  while (self->handling_) {
    auto [error] = co_await self->stream_.socket().async_wait(Tcp::socket::wait_read, as_tuple(use_awaitable));
    if (error || !self->handling_) { break; }
    char byte = 0;
    const ssize_t got = recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got > 0) { break; }  // the next request already: it waits its turn
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      self->Gone();
      break;
    }
  }
  self->watch_ended_.Set();
}

Task<bool> HttpServer::Impl::Connection::OneRequest() {
  if (server_->stopping_ || gone_) { co_return false; }
  keep_alive_ = true;
  is_head_ = false;
  version_ = 11;
  request_id_.clear();
  std::size_t head_bytes = 0;
  if (!co_await ReadHead(&head_bytes)) { co_return false; }
  if (const std::optional<HeadError> error = CheckHead(View(buffer_).substr(0, head_bytes))) {
    co_await RefuseAndClose(error->http_status, error->text, "");
    co_return false;
  }
  Parser parser;
  parser.header_limit(kMaxHeadBytes + 1);
  parser.body_limit(boost::none);
  parser.eager(false);
  error_code error;
  const std::size_t parsed = parser.put(asio::buffer(buffer_.cdata().data(), head_bytes), error);
  if ((error && error != http::error::need_more) || !parser.is_header_done()) {
    co_await RefuseAndClose(400, absl::StrCat("malformed request: ", error.message()), "");
    co_return false;
  }
  buffer_.consume(parsed);

  HttpRequest request;
  const auto& message = parser.get();
  version_ = message.version();
  keep_alive_ = message.keep_alive();
  request.verb = std::string(View(message.method_string()));
  is_head_ = request.verb == "HEAD";
  const absl::string_view target = View(message.target());
  request.path = std::string(target.substr(0, target.find('?')));
  if (const std::size_t mark = target.find('?'); mark != absl::string_view::npos) { request.query = std::string(target.substr(mark + 1)); }
  for (const auto& field : message) { request.headers.emplace_back(std::string(View(field.name_string())), std::string(View(field.value()))); }
  request.peer = peer_;
  request.request_id = AcceptOrMakeRequestId(request.Header("X-Request-Id"));
  request_id_ = request.request_id;

  HttpHandler::Admission admission = server_->handler_->Admit(request);
  const bool has_body = !parser.is_done();
  if (admission.refusal.has_value() && has_body && !request.Header("Expect").empty()) {
    // The client waits for leave to send; it may also send without it, so this connection's next bytes are anybody's guess.
    keep_alive_ = false;
    if (co_await Reply(*std::move(admission.refusal))) { co_await Linger(); }
    co_return false;
  }
  if (has_body && !co_await ReadBody(&parser, request)) { co_return false; }
  if (admission.refusal.has_value()) {
    const bool sent = co_await Reply(*std::move(admission.refusal));
    co_return sent && keep_alive_;
  }
  if (admission.wants_body) { request.body = std::move(parser.get().body()); }

  handling_ = true;
  watch_ended_.Reset();
  SpawnOn(server_->executor_, Watch(shared_from_this()));
  co_await admission.handle(std::move(request), this);
  handling_ = false;
  on_gone_ = nullptr;
  error_code ignored;
  stream_.socket().cancel(ignored);
  co_await watch_ended_.Wait(Deadline::Never());
  co_return keep_alive_ && !gone_;
}

absl::Status HttpServer::Impl::Listen() {
  absl::StatusOr<Tcp::endpoint> endpoint = ParseBind(options_.bind);
  if (!endpoint.ok()) { return endpoint.status(); }
  error_code error;
  acceptor_.open(endpoint->protocol(), error);
  if (!error) { acceptor_.set_option(Tcp::acceptor::reuse_address(true), error); }
  if (!error && endpoint->address().is_v6()) { acceptor_.set_option(asio::ip::v6_only(true), error); }
  if (!error) { acceptor_.bind(*endpoint, error); }
  if (!error) { acceptor_.listen(Tcp::acceptor::max_listen_connections, error); }
  if (error) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
                 absl::StrCat("cannot listen on ", options_.bind, ": ", error.message(), " (is another daemon running? choose --bind)"));
  }
  endpoint_ = acceptor_.local_endpoint(error);
  return absl::OkStatus();
}

Task<void> HttpServer::Impl::Accept(std::shared_ptr<Impl> self) {
  while (!self->stopping_) {
    auto [error, socket] = co_await self->acceptor_.async_accept(as_tuple(use_awaitable));
    if (self->stopping_) { break; }
    if (error) {
      // Out of descriptors, usually: those that are open must end first.
      co_await SleepUntil(Deadline::In(std::chrono::milliseconds(50)));
      continue;
    }
    if (self->connections_.size() >= self->options_.max_connections) {
      // Best effort, without waiting: who floods must not be waited for.
      const std::string text = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
      [[maybe_unused]] const ssize_t sent = send(socket.native_handle(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      continue;
    }
    auto connection = std::make_shared<Connection>(self, std::move(socket));
    self->empty_.Reset();
    self->connections_.insert(connection);
    SpawnOn(self->executor_, Connection::Run(std::move(connection)));
  }
  self->accept_ended_.Set();
}

Task<void> HttpServer::Impl::Stop() {
  stopping_ = true;
  error_code ignored;
  acceptor_.close(ignored);
  const std::set<std::shared_ptr<Connection>> open = connections_;
  for (const std::shared_ptr<Connection>& connection : open) { connection->StopWhenIdle(); }
  if (!co_await empty_.Wait(Deadline::In(kDrain))) {
    const std::set<std::shared_ptr<Connection>> left = connections_;
    for (const std::shared_ptr<Connection>& connection : left) { connection->Cut(); }
  }
  co_await empty_.Wait(Deadline::Never());
  co_await accept_ended_.Wait(Deadline::Never());
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Listen(Executor executor, HttpHandler* handler, HttpServerOptions options) {
  auto impl = std::make_shared<Impl>(executor, handler, std::move(options));
  if (absl::Status listening = impl->Listen(); !listening.ok()) { return listening; }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;
void HttpServer::Serve() { SpawnOn(impl_->executor_, Impl::Accept(impl_)); }
std::uint16_t HttpServer::port() const { return impl_->endpoint_.port(); }
std::string HttpServer::address() const { return AddressText(impl_->endpoint_); }
Task<void> HttpServer::Stop() { co_await impl_->Stop(); }

}  // namespace forkd::gateway
