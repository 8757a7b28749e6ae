// One call of any method over a channel, by the bytes of its messages, as coroutines. Executor only.
#ifndef FORKD_SERVER_GATEWAY_GRPC_STREAM_H_
#define FORKD_SERVER_GATEWAY_GRPC_STREAM_H_

#include <memory>
#include <optional>
#include <string>

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include "base/async.h"
#include "base/deadline.h"

namespace forkd::gateway {

class GrpcStream {
 public:
  // Prepares the call; Start begins it. `path` is "/package.Service/Method". Unary methods are streams of one message each way on the wire.
  static std::shared_ptr<GrpcStream> Make(Executor executor, grpc::GenericStub* stub, std::string path);
  virtual ~GrpcStream() = default;

  // Before Start: for metadata and deadline.
  virtual grpc::ClientContext* context() = 0;
  virtual void Start() = 0;
  // One at a time; false once the call is over.
  virtual Task<bool> Write(std::string message, bool last) = 0;
  virtual Task<bool> WritesDone() = 0;
  // Waits for the next message, or the end of messages, up to `deadline`: whether Read would return at once.
  virtual Task<bool> Readable(Deadline deadline) = 0;
  // The next message's bytes; empty: there are no more, Finish has the reason. One at a time.
  virtual Task<std::optional<std::string>> Read() = 0;
  // Waits for the call's end. Once, and after a started call always: the object may then be dropped.
  virtual Task<grpc::Status> Finish() = 0;
  // Any time after Start; the pending and later operations fail.
  virtual void Cancel() = 0;
};

}  // namespace forkd::gateway

#endif  // FORKD_SERVER_GATEWAY_GRPC_STREAM_H_
