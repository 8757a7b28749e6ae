// The call bridge: the one way from a gRPC method to a coroutine of ours. Every method of every service passes it, in this order, before any
// of its code runs: who is it → may it → limits → room in the audit log (the gates) → the
// contract's rules for its fields → idempotency → deadline → the coroutine on the I/O
// thread → gates again (audit line) → reply. It is not an interceptor: in gRPC 1.51 an interceptor cannot stop a handler.
//
// A handler is a coroutine on the I/O thread. It takes its Call by shared_ptr, may outlive the client's interest, and learns of a client that
// went away by Call::OnCancel. Its absl::Status reaches the client with google.rpc details (status_to_grpc.h).
#ifndef FORKD_SERVER_CALL_H_
#define FORKD_SERVER_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/async.h"
#include "base/async_event.h"
#include "base/deadline.h"
#include "base/runtime.h"
#include "base/status_macros.h"
#include "server/status_to_grpc.h"
#include "server/validate.h"

namespace forkd::server {

// One call under way. Constant after its construction but for cancellation, which lives on the I/O thread.
class Call {
 public:
  Call(const google::protobuf::MethodDescriptor* method, std::string request_id, std::string peer, std::string user_agent, Deadline deadline)
      : method_(method), request_id_(std::move(request_id)), peer_(std::move(peer)), user_agent_(std::move(user_agent)), deadline_(deadline) {}

  const google::protobuf::MethodDescriptor* method() const { return method_; }
  const std::string& request_id() const { return request_id_; }
  const std::string& peer() const { return peer_; }
  const std::string& user_agent() const { return user_agent_; }
  Deadline deadline() const { return deadline_; }
  std::chrono::steady_clock::time_point started() const { return started_; }

  // I/O thread. Runs `fn` when the client goes away; at once if it already has. The last one registered replaces the earlier.
  void OnCancel(absl::AnyInvocable<void()> fn);
  bool cancelled() const { return cancelled_; }
  // I/O thread; by the bridge alone.
  void Cancel();
  void ForgetOnCancel() { on_cancel_ = nullptr; }

 private:
  const google::protobuf::MethodDescriptor* method_;
  const std::string request_id_;
  const std::string peer_;
  const std::string user_agent_;
  const Deadline deadline_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  bool cancelled_ = false;
  absl::AnyInvocable<void()> on_cancel_;
};

// A place on the way of every call: identity, limits, audit. Called on the I/O thread, in the order of registration.
class CallGate {
 public:
  virtual ~CallGate() = default;
  // An error refuses the call: no later gate and no handler runs, so it has no effect.
  virtual absl::Status Admit(const Call& call) = 0;
  // Once for each admitted call, in reverse order, before the reply leaves.
  virtual void Finished(const Call& call, const absl::Status& result) = 0;
};

// Makes a change that carries an idempotency key safe to repeat. Implemented over the registry; a fake in tests.
class IdempotencyStore {
 public:
  virtual ~IdempotencyStore() = default;
  // The stored reply of an earlier call with this key and fingerprint; empty for a key that is now ours to finish or abandon.
  // INVALID_ARGUMENT IDEMPOTENCY_KEY_REUSED for another request; ABORTED while the first is still under way.
  virtual Task<absl::StatusOr<std::optional<std::string>>> Begin(std::string key, std::string fingerprint, std::string method,
                                                                 std::string request_id) = 0;
  virtual Task<absl::Status> Finish(std::string key, std::string reply) = 0;
  virtual Task<void> Abandon(std::string key) = 0;
};

class CallBridge {
 public:
  // Neither owns its arguments; all outlive the bridge. `idempotency` may be null: keys are then refused as UNIMPLEMENTED.
  CallBridge(Runtime* runtime, IdempotencyStore* idempotency, std::vector<CallGate*> gates)
      : runtime_(runtime), idempotency_(idempotency), gates_(std::move(gates)) {}

  template <typename Request, typename Response>
  using UnaryHandler = std::function<Task<absl::StatusOr<Response>>(std::shared_ptr<Call>, Request)>;

  // Any gRPC thread. `method` is the method's short name; it stands in the file that declares its request.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context, const char* method, const Request* request, Response* response,
                                  UnaryHandler<Request, Response> handler);

  // What a streaming handler sees of its client. All methods on the I/O thread; one Read and one Write at a time.
  template <typename In, typename Out>
  class Stream {
   public:
    virtual ~Stream() = default;
    // The next message; empty once the client has finished sending or is gone.
    virtual Task<std::optional<In>> Read() = 0;
    // False once the client is gone. Returns when gRPC has taken the message: a slow client makes the handler wait here.
    virtual Task<bool> Write(Out message) = 0;
    // After Read has come to its end: true if the client had finished sending, false if it is gone. Only this tells the two apart: a stream that
    // was reset takes nothing any more. Once.
    virtual Task<bool> ConfirmOpen() = 0;
  };
  struct Nothing {};

  template <typename In, typename Out>
  using StreamHandler = std::function<Task<absl::Status>(std::shared_ptr<Call>, std::shared_ptr<Stream<In, Out>>)>;

  template <typename In, typename Out>
  grpc::ServerBidiReactor<In, Out>* Bidi(grpc::CallbackServerContext* context, const char* method, StreamHandler<In, Out> handler);
  template <typename Out>
  grpc::ServerWriteReactor<Out>* ServerStream(grpc::CallbackServerContext* context, const char* method, StreamHandler<Nothing, Out> handler);
  // The reply is what the handler has put into gRPC's response message by the time it returns OK.
  template <typename In>
  grpc::ServerReadReactor<In>* ClientStream(grpc::CallbackServerContext* context, const char* method, StreamHandler<In, Nothing> handler);

  Runtime* runtime() const { return runtime_; }

 private:
  template <typename Request, typename Response>
  class UnaryCall;
  template <typename Base, typename In, typename Out>
  class StreamCall;

  // `message`: any message of the file that declares the service.
  std::shared_ptr<Call> NewCall(grpc::CallbackServerContext* context, const google::protobuf::Descriptor* message, const char* method) const;
  // The gates, in order. What admitted the call is told of its end by Leave.
  absl::Status Enter(const Call& call, std::size_t* admitted) const;
  void Leave(const Call& call, std::size_t admitted, const absl::Status& result) const;

  // Runs the handler between the gates and, for a request with an idempotency key, between Begin and Finish.
  template <typename Request, typename Response>
  Task<absl::StatusOr<Response>> Handle(std::shared_ptr<Call> call, Request request, UnaryHandler<Request, Response> handler);

  struct Repeatable {
    std::string key;
    std::string fingerprint;
  };
  // The idempotency key of a request and the SHA-256 of everything else in it; empty key where it has none.
  static absl::StatusOr<Repeatable> RepeatableOf(const google::protobuf::Message& request);

  Runtime* const runtime_;
  IdempotencyStore* const idempotency_;
  const std::vector<CallGate*> gates_;
};

// ---- implementation of the templates ----

template <typename Request, typename Response>
class CallBridge::UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(const CallBridge* bridge, std::shared_ptr<Call> call) : bridge_(bridge), call_(std::move(call)) {}

  // Takes what it needs by value: the coroutine may still be suspended when gRPC has cancelled the call, but never after Finish.
  static Task<void> Run(UnaryCall* self, CallBridge* bridge, std::shared_ptr<Call> call, const Request* request, Response* response,
                        UnaryHandler<Request, Response> handler) {
    std::size_t admitted = 0;
    absl::Status status = bridge->Enter(*call, &admitted);
    if (status.ok()) {
      absl::StatusOr<Response> result = co_await bridge->Handle<Request, Response>(call, *request, std::move(handler));
      status = result.status();
      if (result.ok()) { *response = *std::move(result); }
    }
    bridge->Leave(*call, admitted, status);
    call->ForgetOnCancel();
    self->Finish(ToGrpcStatus(status));  // Nothing of `self` may be touched after this.
  }

  void OnDone() override { delete this; }
  void OnCancel() override {
    bridge_->runtime()->Post([call = call_] { call->Cancel(); });
  }

 private:
  const CallBridge* const bridge_;
  const std::shared_ptr<Call> call_;
};

template <typename Request, typename Response>
Task<absl::StatusOr<Response>> CallBridge::Handle(std::shared_ptr<Call> call, Request request, UnaryHandler<Request, Response> handler) {
  FORKD_CO_RETURN_IF_ERROR(ValidateRequest(request));
  absl::StatusOr<Repeatable> repeatable = RepeatableOf(request);
  if (!repeatable.ok()) { co_return repeatable.status(); }
  const std::string key = repeatable->key;
  if (key.empty()) { co_return co_await handler(call, std::move(request)); }
  if (idempotency_ == nullptr) { co_return absl::UnimplementedError("this daemon keeps no idempotency keys"); }
  absl::StatusOr<std::optional<std::string>> begun =
      co_await idempotency_->Begin(key, std::move(repeatable->fingerprint), call->method()->full_name(), call->request_id());
  if (!begun.ok()) { co_return begun.status(); }
  if (begun->has_value()) {
    Response replayed;
    if (!replayed.ParseFromString(**begun)) { co_return absl::InternalError("the stored reply of an idempotency key cannot be read"); }
    co_return replayed;
  }
  absl::StatusOr<Response> result = co_await handler(call, std::move(request));
  if (!result.ok()) {
    // Nothing was made: the key is free for another try.
    co_await idempotency_->Abandon(key);
    co_return result;
  }
  const absl::Status kept = co_await idempotency_->Finish(key, result->SerializeAsString());
  if (!kept.ok()) { co_return kept; }
  co_return result;
}

template <typename Request, typename Response>
grpc::ServerUnaryReactor* CallBridge::Unary(grpc::CallbackServerContext* context, const char* method, const Request* request,
                                            Response* response, UnaryHandler<Request, Response> handler) {
  std::shared_ptr<Call> call = NewCall(context, Request::descriptor(), method);
  auto* reactor = new UnaryCall<Request, Response>(this, call);
  runtime_->Spawn(UnaryCall<Request, Response>::Run(reactor, this, std::move(call), request, response, std::move(handler)));
  return reactor;
}

// The three streaming reactors of gRPC differ only in which half they have; `Base` decides which of the reactions below are overrides.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Winconsistent-missing-override"
template <typename Base, typename In, typename Out>
class CallBridge::StreamCall final : public Base, public Stream<In, Out> {
 public:
  StreamCall(CallBridge* bridge, std::shared_ptr<Call> call)
      : bridge_(bridge),
        call_(std::move(call)),
        read_done_(bridge->runtime()->executor()),
        write_done_(bridge->runtime()->executor()),
        metadata_done_(bridge->runtime()->executor()) {}

  void HoldUntilDone(std::shared_ptr<StreamCall> self) { self_ = std::move(self); }

  static Task<void> Run(std::shared_ptr<StreamCall> self, StreamHandler<In, Out> handler) {
    std::size_t admitted = 0;
    absl::Status status = self->bridge_->Enter(*self->call_, &admitted);
    if (status.ok()) { status = co_await handler(self->call_, self); }
    self->bridge_->Leave(*self->call_, admitted, status);
    self->call_->ForgetOnCancel();
    self->finished_ = true;
    self->Base::Finish(ToGrpcStatus(status));
  }

  Task<std::optional<In>> Read() override {
    if constexpr (!std::is_same_v<In, Nothing>) {
      if (finished_ || read_ended_) { co_return std::nullopt; }
      read_done_.Reset();
      this->StartRead(&incoming_);
      co_await read_done_.Wait(Deadline::Never());
      if (read_ended_) { co_return std::nullopt; }
      co_return std::move(incoming_);
    } else {
      co_return std::nullopt;
    }
  }

  Task<bool> Write(Out message) override {
    if constexpr (!std::is_same_v<Out, Nothing>) {
      if (finished_ || write_failed_ || call_->cancelled()) { co_return false; }
      outgoing_ = std::move(message);
      write_done_.Reset();
      this->StartWrite(&outgoing_);
      co_await write_done_.Wait(Deadline::Never());
      co_return !write_failed_;
    } else {
      co_return false;
    }
  }

  Task<bool> ConfirmOpen() override {
    if (finished_ || call_->cancelled()) { co_return false; }
    this->StartSendInitialMetadata();
    co_await metadata_done_.Wait(Deadline::Never());
    co_return metadata_sent_ && !call_->cancelled();
  }

  // Reactions, on gRPC's threads: they only post.
  void OnSendInitialMetadataDone(bool ok) {
    Post([self = self_, ok] {
      self->metadata_sent_ = ok;
      self->metadata_done_.Set();
    });
  }
  void OnReadDone(bool ok) {
    Post([self = self_, ok] {
      if (!ok) { self->read_ended_ = true; }
      self->read_done_.Set();
    });
  }
  void OnWriteDone(bool ok) {
    Post([self = self_, ok] {
      if (!ok) { self->write_failed_ = true; }
      self->write_done_.Set();
    });
  }
  void OnCancel() {
    Post([self = self_] { self->call_->Cancel(); });
  }
  void OnDone() {
    // The last reference may be a coroutine's that has not yet seen its read end.
    Post([self = std::move(self_)] {});
  }

 private:
  void Post(absl::AnyInvocable<void()> fn) { bridge_->runtime()->Post(std::move(fn)); }

  CallBridge* const bridge_;
  const std::shared_ptr<Call> call_;
  std::shared_ptr<StreamCall> self_;  // Until OnDone.
  // I/O thread:
  AsyncEvent read_done_;
  AsyncEvent write_done_;
  AsyncEvent metadata_done_;
  bool metadata_sent_ = false;
  bool read_ended_ = false;
  bool write_failed_ = false;
  bool finished_ = false;
  In incoming_;
  Out outgoing_;
};
#pragma clang diagnostic pop

template <typename In, typename Out>
grpc::ServerBidiReactor<In, Out>* CallBridge::Bidi(grpc::CallbackServerContext* context, const char* method, StreamHandler<In, Out> handler) {
  using Reactor = StreamCall<grpc::ServerBidiReactor<In, Out>, In, Out>;
  auto reactor = std::make_shared<Reactor>(this, NewCall(context, In::descriptor(), method));
  reactor->HoldUntilDone(reactor);
  runtime_->Spawn(Reactor::Run(reactor, std::move(handler)));
  return reactor.get();
}

template <typename Out>
grpc::ServerWriteReactor<Out>* CallBridge::ServerStream(grpc::CallbackServerContext* context, const char* method,
                                                        StreamHandler<Nothing, Out> handler) {
  using Reactor = StreamCall<grpc::ServerWriteReactor<Out>, Nothing, Out>;
  auto reactor = std::make_shared<Reactor>(this, NewCall(context, Out::descriptor(), method));
  reactor->HoldUntilDone(reactor);
  runtime_->Spawn(Reactor::Run(reactor, std::move(handler)));
  return reactor.get();
}

template <typename In>
grpc::ServerReadReactor<In>* CallBridge::ClientStream(grpc::CallbackServerContext* context, const char* method,
                                                      StreamHandler<In, Nothing> handler) {
  using Reactor = StreamCall<grpc::ServerReadReactor<In>, In, Nothing>;
  auto reactor = std::make_shared<Reactor>(this, NewCall(context, In::descriptor(), method));
  reactor->HoldUntilDone(reactor);
  runtime_->Spawn(Reactor::Run(reactor, std::move(handler)));
  return reactor.get();
}

}  // namespace forkd::server

#endif  // FORKD_SERVER_CALL_H_
