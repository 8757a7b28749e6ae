// forkd.v1.SnapshotService over the engine: convert, call, convert back.
#ifndef FORKD_SERVER_SNAPSHOT_SERVICE_H_
#define FORKD_SERVER_SNAPSHOT_SERVICE_H_

#include <memory>

#include "engine/engine.h"
#include "proto/forkd/v1/snapshot.grpc.pb.h"
#include "server/call.h"

namespace forkd::server {

// Borrows both; they outlive it.
class SnapshotService final : public v1::SnapshotService::CallbackService {
 public:
  SnapshotService(CallBridge* bridge, engine::Engine* engine) : bridge_(bridge), engine_(engine) {}

  grpc::ServerUnaryReactor* CreateSnapshot(grpc::CallbackServerContext* context, const v1::CreateSnapshotRequest* request,
                                           v1::SnapshotInfo* response) override;
  grpc::ServerUnaryReactor* ListSnapshots(grpc::CallbackServerContext* context, const v1::ListSnapshotsRequest* request,
                                          v1::ListSnapshotsResponse* response) override;
  grpc::ServerUnaryReactor* GetSnapshot(grpc::CallbackServerContext* context, const v1::GetSnapshotRequest* request,
                                        v1::SnapshotInfo* response) override;
  grpc::ServerUnaryReactor* GetSnapshotInfo(grpc::CallbackServerContext* context, const v1::GetSnapshotInfoRequest* request,
                                            v1::SnapshotInfoDetail* response) override;
  grpc::ServerUnaryReactor* DeleteSnapshot(grpc::CallbackServerContext* context, const v1::DeleteSnapshotRequest* request,
                                           v1::DeleteSnapshotResponse* response) override;

 private:
  Task<absl::StatusOr<v1::SnapshotInfo>> Create(std::shared_ptr<Call> call, v1::CreateSnapshotRequest request);
  Task<absl::StatusOr<v1::ListSnapshotsResponse>> List(std::shared_ptr<Call> call, v1::ListSnapshotsRequest request);
  Task<absl::StatusOr<v1::SnapshotInfo>> Get(std::shared_ptr<Call> call, v1::GetSnapshotRequest request);
  Task<absl::StatusOr<v1::SnapshotInfoDetail>> Describe(std::shared_ptr<Call> call, v1::GetSnapshotInfoRequest request);
  Task<absl::StatusOr<v1::DeleteSnapshotResponse>> Delete(std::shared_ptr<Call> call, v1::DeleteSnapshotRequest request);

  CallBridge* const bridge_;
  engine::Engine* const engine_;
};

}  // namespace forkd::server

#endif  // FORKD_SERVER_SNAPSHOT_SERVICE_H_
