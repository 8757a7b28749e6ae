// HTTP/1.1 on a listening socket: connections, heads, bodies, timeouts, bounds. What is answered is the handler's business. One executor; Beast
// stays in the .cc.
#ifndef FORKD_SERVER_GATEWAY_HTTP_SERVER_H_
#define FORKD_SERVER_GATEWAY_HTTP_SERVER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/async.h"
#include "server/gateway/http_message.h"

namespace forkd::gateway {

// The way back to one request's client. Executor only.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;

  // The whole answer; once, and not after BeginStream. To a HEAD request the body is not sent. False: the client is gone.
  virtual Task<bool> Reply(HttpReply reply) = 0;
  // An answer whose length is not known: chunked (or, to HTTP/1.0, ended by closing). `reply.body` is its first piece, perhaps empty.
  virtual Task<bool> BeginStream(HttpReply reply) = 0;
  // The next piece, not empty. Returns when the socket has taken it: a slow client makes the caller wait here, up to the write timeout.
  virtual Task<bool> Write(std::string piece) = 0;
  // `complete` false: the connection is cut, so that the client sees that something is missing.
  virtual Task<void> EndStream(bool complete) = 0;

  // Runs `fn` once when the client closes its end or the server stops, at once if that has happened; nullptr forgets it.
  virtual void OnGone(absl::AnyInvocable<void()> fn) = 0;
  virtual bool IsHead() const = 0;
};

// Executor only; outlives the server.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  struct Admission {
    // Answered at once; a body is skipped.
    std::optional<HttpReply> refusal;
    // Otherwise: the body is put into the request (or read and dropped), then `handle` answers by way of the responder, exactly once. The next
    // request of the connection is read when it returns. It may be a lambda that calls a coroutine, never one itself.
    bool wants_body = false;
    absl::AnyInvocable<Task<void>(HttpRequest request, HttpResponder* responder)> handle;
  };
  // Called when the head is there. Fast, no waiting.
  virtual Admission Admit(const HttpRequest& request) = 0;
  // What the server itself refuses: malformed heads, bodies too large, too many connections. `request_id` may be empty.
  virtual HttpReply Refuse(int http_status, absl::string_view text, absl::string_view request_id) = 0;
};

struct HttpServerOptions {
  std::string bind;
  std::size_t max_connections = 1024;
  std::size_t max_body_bytes = 2 * 1024 * 1024;
  std::chrono::milliseconds head_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::chrono::milliseconds idle_timeout{75'000};
  std::chrono::milliseconds write_timeout{30'000};
};

class HttpServer {
 public:
  // Any thread. Clients can connect and wait. INVALID_ARGUMENT: `bind` is no address and port. FAILED_PRECONDITION: it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Listen(Executor executor, HttpHandler* handler, HttpServerOptions options);
  // Any thread, once: answers them.
  void Serve();
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::uint16_t port() const;
  std::string address() const;

  // Executor. Closes the listener and every connection, tells each OnGone, and waits for the handlers to return.
  Task<void> Stop();

 private:
  class Impl;
  explicit HttpServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_HTTP_SERVER_H_
