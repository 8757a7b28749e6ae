// The REST half of the daemon: HTTP/1.1 in front of a gRPC channel. Which routes there are, how a request becomes a message and a message an
// answer, is read from the contract's descriptors; no route is named in code.
#ifndef FORKD_SERVER_GATEWAY_GATEWAY_H_
#define FORKD_SERVER_GATEWAY_GATEWAY_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include "absl/status/statusor.h"
#include "base/async.h"

namespace forkd::gateway {

struct HttpRequest;

struct GatewayOptions {
  // Address and port, "127.0.0.1:8889" or "[::1]:0"; port 0: any. No host names.
  std::string bind = "127.0.0.1:8889";

  // The contract with its comments; nullptr: forkd's own, built in. Read at Start alone.
  const google::protobuf::FileDescriptorSet* contract = nullptr;

  // What GET /version says.
  std::string version;

  // Called on the I/O thread for each call before it starts: adds metadata that says who called. May be empty.
  std::function<void(const HttpRequest& request, grpc::ClientContext* context)> add_metadata;

  // Bounds, each tested.
  std::size_t max_connections = 1024;
  std::size_t max_body_bytes = 2 * 1024 * 1024;  // the contract's
  std::chrono::milliseconds head_timeout{10'000};  // from the first byte of a head to its last
  std::chrono::milliseconds body_timeout{30'000};  // the same for a body
  std::chrono::milliseconds idle_timeout{75'000};  // between two requests of a connection
  std::chrono::milliseconds write_timeout{30'000};  // a client that does not read an answer
};

// Lives on one executor; Stop before it is destroyed.
class Gateway {
 public:
  // Any thread. Listens when it returns. INVALID_ARGUMENT: `bind` is no address, or is not loopback (message of the contract: nothing here
  // authenticates a caller yet); FAILED_PRECONDITION: the address cannot be bound; INVALID_ARGUMENT: routes that contradict each other.
  static absl::StatusOr<std::unique_ptr<Gateway>> Start(Executor executor, std::shared_ptr<grpc::Channel> channel, GatewayOptions options);
  ~Gateway();
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  std::uint16_t port() const;
  // The bound address, "127.0.0.1:8889".
  std::string address() const;

  // On the executor. Accepts no more, cancels what runs, closes connections, and returns when nothing of the gateway is left on the executor.
  Task<void> Stop();

 private:
  struct Impl;
  explicit Gateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// INVALID_ARGUMENT with the contract's words for an address that others than this machine could reach.
absl::Status CheckLoopback(const std::string& bind);

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_GATEWAY_H_
