// One gRPC call of any shape, by method name and dynamic messages.
#ifndef FORKD_CLI_GENERIC_CALL_H_
#define FORKD_CLI_GENERIC_CALL_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

namespace forkd::cli {

// A channel to `address` ("host:port" or "unix:/path") without TLS. Made at once, connected at the first call.
std::shared_ptr<grpc::Channel> Connect(const std::string& address);

// Blocking, one thread. The order is Write…, WritesDone, Read… until false, Finish; after a failed Write only Finish remains.
class GenericCall {
 public:
  using Clock = std::chrono::steady_clock;
  // Called about ten times a second while a step waits, with the time since the call began.
  using OnWait = std::function<void(Clock::duration)>;

  // No `deadline`: the call waits for ever.
  GenericCall(std::shared_ptr<grpc::Channel> channel, const google::protobuf::MethodDescriptor* method,
              std::optional<std::chrono::milliseconds> deadline, OnWait on_wait);
  ~GenericCall();
  GenericCall(const GenericCall&) = delete;
  GenericCall& operator=(const GenericCall&) = delete;

  // False: the call has ended, or the message could not be sent.
  bool Write(const google::protobuf::Message& message);
  bool WritesDone();
  // False: no more messages. A message that does not parse ends the call; Finish says so.
  bool Read(google::protobuf::Message* message);
  // The call's outcome. Messages that were not read are dropped.
  grpc::Status Finish();

 private:
  bool Wait();

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  OnWait on_wait_;
  Clock::time_point began_ = Clock::now();
  bool alive_ = false;
  bool finished_ = false;
  bool garbled_ = false;
};

}  // namespace forkd::cli

#endif  // FORKD_CLI_GENERIC_CALL_H_
