#include "server/call.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>

#include "base/error.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "proto/forkd/v1/sandbox.grpc.pb.h"

namespace forkd::server {
namespace {

using std::chrono::seconds;

// Counts what reaches it; a test decides what it answers.
class CountingGate final : public CallGate {
 public:
  absl::Status Admit(const Call& call) override {
    ++admitted;
    return answer;
  }
  void Finished(const Call& call, const absl::Status& result) override {
    ++finished;
    last = result;
  }
  absl::Status answer;
  absl::Status last;
  int admitted = 0;
  int finished = 0;
};

class FakeIdempotency final : public IdempotencyStore {
 public:
  Task<absl::StatusOr<std::optional<std::string>>> Begin(std::string key, std::string fingerprint, std::string method,
                                                         std::string request_id) override {
    if (const auto it = fingerprints_.find(key); it != fingerprints_.end() && it->second != fingerprint) {
      co_return Error(absl::StatusCode::kInvalidArgument, Reason::kIdempotencyKeyReused, "the key came with another request");
    }
    fingerprints_[key] = fingerprint;
    const auto it = replies.find(key);
    co_return it == replies.end() ? std::nullopt : std::optional<std::string>(it->second);
  }
  Task<absl::Status> Finish(std::string key, std::string reply) override {
    replies[key] = reply;
    co_return absl::OkStatus();
  }
  Task<void> Abandon(std::string key) override {
    fingerprints_.erase(key);
    co_return;
  }
  std::map<std::string, std::string> replies;

 private:
  std::map<std::string, std::string> fingerprints_;
};

// A service whose handlers count their calls: "nothing happened" is engine_calls == 0.
class TestService final : public v1::SandboxService::CallbackService {
 public:
  explicit TestService(CallBridge* bridge) : bridge_(bridge) {}

  grpc::ServerUnaryReactor* CreateSandboxes(grpc::CallbackServerContext* c, const v1::CreateSandboxesRequest* q,
                                            v1::CreateSandboxesResponse* r) override {
    return bridge_->Unary<v1::CreateSandboxesRequest, v1::CreateSandboxesResponse>(c, "CreateSandboxes", q, r,
                                                                                   std::bind_front(&TestService::Create, this));
  }
  grpc::ServerUnaryReactor* PauseSandbox(grpc::CallbackServerContext* c, const v1::PauseSandboxRequest* q, v1::SandboxInfo* r) override {
    return bridge_->Unary<v1::PauseSandboxRequest, v1::SandboxInfo>(c, "PauseSandbox", q, r, std::bind_front(&TestService::WaitForCancel, this));
  }
  grpc::ServerBidiReactor<v1::ExecStreamRequest, v1::ExecStreamResponse>* ExecStream(grpc::CallbackServerContext* c) override {
    return bridge_->Bidi<v1::ExecStreamRequest, v1::ExecStreamResponse>(c, "ExecStream", std::bind_front(&TestService::Echo, this));
  }

  std::atomic<int> engine_calls = 0;
  std::atomic<bool> saw_cancel = false;
  absl::Status answer;

 private:
  Task<absl::StatusOr<v1::CreateSandboxesResponse>> Create(std::shared_ptr<Call> call, v1::CreateSandboxesRequest request) {
    ++engine_calls;
    if (!answer.ok()) { co_return answer; }
    v1::CreateSandboxesResponse response;
    response.add_sandboxes()->set_id(absl::StrCat("sb-", engine_calls.load()));
    co_return response;
  }
  Task<absl::StatusOr<v1::SandboxInfo>> WaitForCancel(std::shared_ptr<Call> call, v1::PauseSandboxRequest request) {
    ++engine_calls;
    AsyncEvent cancelled(bridge_->runtime()->executor());
    call->OnCancel([&cancelled] { cancelled.Set(); });
    saw_cancel = co_await cancelled.Wait(Deadline::In(seconds(20)));
    co_return v1::SandboxInfo();
  }
  Task<absl::Status> Echo(std::shared_ptr<Call> call, std::shared_ptr<CallBridge::Stream<v1::ExecStreamRequest, v1::ExecStreamResponse>> peer) {
    while (true) {
      std::optional<v1::ExecStreamRequest> request = co_await peer->Read();
      if (!request.has_value()) { co_return absl::OkStatus(); }
      v1::ExecStreamResponse response;
      response.set_stdout(request->stdin());
      if (!co_await peer->Write(response)) { co_return absl::CancelledError("gone"); }
    }
  }
  CallBridge* const bridge_;
};

class CallBridgeTest : public testing::Test {
 protected:
  CallBridgeTest() : bridge_(&runtime_, &idempotency_, {&first_, &second_}), service_(&bridge_) {
    runtime_.Start();
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = v1::SandboxService::NewStub(server_->InProcessChannel({}));
  }
  ~CallBridgeTest() override {
    server_->Shutdown(std::chrono::system_clock::now());
    runtime_.Stop();
  }

  grpc::Status Create(const std::string& key, int n, v1::CreateSandboxesResponse* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(20));
    v1::CreateSandboxesRequest request;
    request.set_snapshot_tag("t");
    request.set_n(n);
    request.set_idempotency_key(key);
    return stub_->CreateSandboxes(&context, request, response);
  }

  Runtime runtime_;
  CountingGate first_;
  CountingGate second_;
  FakeIdempotency idempotency_;
  CallBridge bridge_;
  TestService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::SandboxService::Stub> stub_;
};

google::rpc::ErrorInfo InfoOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::ErrorInfo info;
  for (const google::protobuf::Any& any : details.details()) { any.UnpackTo(&info); }
  return info;
}

TEST_F(CallBridgeTest, AnAdmittedCallReachesItsHandlerAndTellsEveryGate) {
  v1::CreateSandboxesResponse response;
  EXPECT_TRUE(Create("", 1, &response).ok());
  EXPECT_EQ(response.sandboxes(0).id(), "sb-1");
  EXPECT_EQ(first_.finished, 1);
  EXPECT_EQ(second_.finished, 1);
  EXPECT_TRUE(second_.last.ok());
}

TEST_F(CallBridgeTest, ARefusedCallHasNoEffect) {
  second_.answer = absl::PermissionDeniedError("no");
  v1::CreateSandboxesResponse response;
  const grpc::Status status = Create("key", 1, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(service_.engine_calls, 0);
  EXPECT_TRUE(idempotency_.replies.empty());
  EXPECT_EQ(first_.finished, 1) << "the gate that had admitted it learns of the end";
  EXPECT_EQ(second_.finished, 0);
}

TEST_F(CallBridgeTest, ARefusedStreamHasNoEffect) {
  first_.answer = absl::UnauthenticatedError("who?");
  grpc::ClientContext context;
  auto stream = stub_->ExecStream(&context);
  v1::ExecStreamResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(CallBridgeTest, ARequestThatBreaksItsFieldsRulesNeverReachesTheHandler) {
  v1::CreateSandboxesResponse response;
  const grpc::Status status = Create("", 1001, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(InfoOf(status).reason(), "INVALID_FIELD");
  EXPECT_EQ(InfoOf(status).metadata().at("field"), "n");
  EXPECT_EQ(service_.engine_calls, 0);
}

TEST_F(CallBridgeTest, ARepeatedKeyReplaysTheFirstReply) {
  v1::CreateSandboxesResponse first;
  v1::CreateSandboxesResponse again;
  EXPECT_TRUE(Create("key", 1, &first).ok());
  EXPECT_TRUE(Create("key", 1, &again).ok());
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  EXPECT_EQ(service_.engine_calls, 1);
}

TEST_F(CallBridgeTest, AKeyWithAnotherRequestIsRefused) {
  v1::CreateSandboxesResponse response;
  EXPECT_TRUE(Create("key", 1, &response).ok());
  const grpc::Status status = Create("key", 2, &response);
  EXPECT_EQ(InfoOf(status).reason(), "IDEMPOTENCY_KEY_REUSED");
  EXPECT_EQ(service_.engine_calls, 1);
}

TEST_F(CallBridgeTest, AFailedCallFreesItsKey) {
  service_.answer = absl::UnavailableError("later");
  v1::CreateSandboxesResponse response;
  EXPECT_FALSE(Create("key", 1, &response).ok());
  service_.answer = absl::OkStatus();
  EXPECT_TRUE(Create("key", 2, &response).ok()) << "another request may use it";
  EXPECT_EQ(service_.engine_calls, 2);
}

TEST_F(CallBridgeTest, AnOverlongKeyIsRefused) {
  v1::CreateSandboxesResponse response;
  EXPECT_EQ(Create(std::string(65, 'k'), 1, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(service_.engine_calls, 0);
}

TEST_F(CallBridgeTest, TheHandlerLearnsOfAClientThatWentAway) {
  grpc::ClientContext context;
  std::thread canceller([this, &context] {
    while (service_.engine_calls == 0) { std::this_thread::yield(); }
    context.TryCancel();
  });
  v1::PauseSandboxRequest request;
  request.set_id("sb-65f0a1b2-0001");
  v1::SandboxInfo response;
  EXPECT_EQ(stub_->PauseSandbox(&context, request, &response).error_code(), grpc::StatusCode::CANCELLED);
  canceller.join();
  server_->Shutdown();
  EXPECT_TRUE(service_.saw_cancel);
}

TEST_F(CallBridgeTest, AStreamCarriesMessagesBothWaysAndEndsWithTheClient) {
  grpc::ClientContext context;
  auto stream = stub_->ExecStream(&context);
  for (int i = 0; i < 100; ++i) {
    v1::ExecStreamRequest request;
    request.set_stdin(absl::StrCat("line ", i));
    ASSERT_TRUE(stream->Write(request));
    v1::ExecStreamResponse response;
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.stdout(), absl::StrCat("line ", i));
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace forkd::server
