// forkd.v1.SandboxService over the engine and the guest agents.
#ifndef FORKD_SERVER_SANDBOX_SERVICE_H_
#define FORKD_SERVER_SANDBOX_SERVICE_H_

#include <memory>

#include "engine/engine.h"
#include "proto/forkd/v1/sandbox.grpc.pb.h"
#include "server/call.h"

namespace forkd::server {

// Borrows both; they outlive it.
class SandboxService final : public v1::SandboxService::CallbackService {
 public:
  SandboxService(CallBridge* bridge, engine::Engine* engine) : bridge_(bridge), engine_(engine) {}

  using Context = grpc::CallbackServerContext;
  using Unary = grpc::ServerUnaryReactor;

  Unary* CreateSandboxes(Context* context, const v1::CreateSandboxesRequest* request, v1::CreateSandboxesResponse* response) override;
  Unary* ListSandboxes(Context* context, const v1::ListSandboxesRequest* request, v1::ListSandboxesResponse* response) override;
  Unary* GetSandbox(Context* context, const v1::GetSandboxRequest* request, v1::SandboxInfo* response) override;
  Unary* DeleteSandbox(Context* context, const v1::DeleteSandboxRequest* request, v1::DeleteSandboxResponse* response) override;
  Unary* PingSandbox(Context* context, const v1::PingSandboxRequest* request, v1::PingSandboxResponse* response) override;
  Unary* Exec(Context* context, const v1::ExecRequest* request, v1::ExecResponse* response) override;
  grpc::ServerBidiReactor<v1::ExecStreamRequest, v1::ExecStreamResponse>* ExecStream(Context* context) override;
  Unary* Eval(Context* context, const v1::EvalRequest* request, v1::EvalResponse* response) override;
  Unary* BranchSandbox(Context* context, const v1::BranchSandboxRequest* request, v1::SnapshotInfo* response) override;
  Unary* PauseSandbox(Context* context, const v1::PauseSandboxRequest* request, v1::SandboxInfo* response) override;
  Unary* ResumeSandbox(Context* context, const v1::ResumeSandboxRequest* request, v1::SandboxInfo* response) override;
  grpc::ServerWriteReactor<v1::ReadFileResponse>* ReadFile(Context* context, const v1::ReadFileRequest* request) override;
  grpc::ServerReadReactor<v1::WriteFileRequest>* WriteFile(Context* context, v1::FileInfo* response) override;
  Unary* ListDirectory(Context* context, const v1::ListDirectoryRequest* request, v1::ListDirectoryResponse* response) override;
  Unary* StatFile(Context* context, const v1::StatFileRequest* request, v1::FileInfo* response) override;
  Unary* RemoveFile(Context* context, const v1::RemoveFileRequest* request, v1::RemoveFileResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchSandboxesResponse>* WatchSandboxes(Context* context, const v1::WatchSandboxesRequest* request) override;

 private:
  template <typename T>
  using Reply = Task<absl::StatusOr<T>>;
  using CallPtr = std::shared_ptr<Call>;
  using ExecPeer = CallBridge::Stream<v1::ExecStreamRequest, v1::ExecStreamResponse>;
  using ReadPeer = CallBridge::Stream<CallBridge::Nothing, v1::ReadFileResponse>;
  using WritePeer = CallBridge::Stream<v1::WriteFileRequest, CallBridge::Nothing>;
  using WatchPeer = CallBridge::Stream<CallBridge::Nothing, v1::WatchSandboxesResponse>;

  Reply<v1::CreateSandboxesResponse> Create(CallPtr call, v1::CreateSandboxesRequest request);
  Reply<v1::ListSandboxesResponse> List(CallPtr call, v1::ListSandboxesRequest request);
  Reply<v1::SandboxInfo> Get(CallPtr call, v1::GetSandboxRequest request);
  Reply<v1::DeleteSandboxResponse> Delete(CallPtr call, v1::DeleteSandboxRequest request);
  Reply<v1::PingSandboxResponse> Ping(CallPtr call, v1::PingSandboxRequest request);
  Reply<v1::ExecResponse> RunProgram(CallPtr call, v1::ExecRequest request);
  Task<absl::Status> StreamProgram(CallPtr call, std::shared_ptr<ExecPeer> peer);
  Reply<v1::EvalResponse> Evaluate(CallPtr call, v1::EvalRequest request);
  Reply<v1::SnapshotInfo> Branch(CallPtr call, v1::BranchSandboxRequest request);
  Reply<v1::SandboxInfo> Pause(CallPtr call, v1::PauseSandboxRequest request);
  Reply<v1::SandboxInfo> Resume(CallPtr call, v1::ResumeSandboxRequest request);
  Task<absl::Status> StreamFileOut(CallPtr call, v1::ReadFileRequest request, std::shared_ptr<ReadPeer> peer);
  Task<absl::Status> StreamFileIn(CallPtr call, v1::FileInfo* response, std::shared_ptr<WritePeer> peer);
  Reply<v1::ListDirectoryResponse> ListFiles(CallPtr call, v1::ListDirectoryRequest request);
  Reply<v1::FileInfo> Stat(CallPtr call, v1::StatFileRequest request);
  Reply<v1::RemoveFileResponse> Remove(CallPtr call, v1::RemoveFileRequest request);
  Task<absl::Status> StreamEvents(CallPtr call, v1::WatchSandboxesRequest request, std::shared_ptr<WatchPeer> peer);

  Task<absl::StatusOr<engine::ActiveAgent>> AgentOf(std::string id, Deadline deadline);

  CallBridge* const bridge_;
  engine::Engine* const engine_;
};

}  // namespace forkd::server

#endif  // FORKD_SERVER_SANDBOX_SERVICE_H_
