#include "server/snapshot_service.h"

#include <functional>
#include <utility>

#include "base/error.h"
#include "base/status_macros.h"
#include "server/convert.h"
#include "server/label_filter.h"
#include "server/remember.h"

namespace forkd::server {

grpc::ServerUnaryReactor* SnapshotService::CreateSnapshot(grpc::CallbackServerContext* context, const v1::CreateSnapshotRequest* request,
                                                          v1::SnapshotInfo* response) {
  return bridge_->Unary<v1::CreateSnapshotRequest, v1::SnapshotInfo>(context, "CreateSnapshot", request, response,
                                                                     std::bind_front(&SnapshotService::Create, this));
}

grpc::ServerUnaryReactor* SnapshotService::ListSnapshots(grpc::CallbackServerContext* context, const v1::ListSnapshotsRequest* request,
                                                         v1::ListSnapshotsResponse* response) {
  return bridge_->Unary<v1::ListSnapshotsRequest, v1::ListSnapshotsResponse>(context, "ListSnapshots", request, response,
                                                                             std::bind_front(&SnapshotService::List, this));
}

grpc::ServerUnaryReactor* SnapshotService::GetSnapshot(grpc::CallbackServerContext* context, const v1::GetSnapshotRequest* request,
                                                       v1::SnapshotInfo* response) {
  return bridge_->Unary<v1::GetSnapshotRequest, v1::SnapshotInfo>(context, "GetSnapshot", request, response,
                                                                  std::bind_front(&SnapshotService::Get, this));
}

grpc::ServerUnaryReactor* SnapshotService::GetSnapshotInfo(grpc::CallbackServerContext* context, const v1::GetSnapshotInfoRequest* request,
                                                           v1::SnapshotInfoDetail* response) {
  return bridge_->Unary<v1::GetSnapshotInfoRequest, v1::SnapshotInfoDetail>(context, "GetSnapshotInfo", request, response,
                                                                            std::bind_front(&SnapshotService::Describe, this));
}

grpc::ServerUnaryReactor* SnapshotService::DeleteSnapshot(grpc::CallbackServerContext* context, const v1::DeleteSnapshotRequest* request,
                                                          v1::DeleteSnapshotResponse* response) {
  return bridge_->Unary<v1::DeleteSnapshotRequest, v1::DeleteSnapshotResponse>(context, "DeleteSnapshot", request, response,
                                                                               std::bind_front(&SnapshotService::Delete, this));
}

Task<absl::StatusOr<v1::SnapshotInfo>> SnapshotService::Create(std::shared_ptr<Call> call, v1::CreateSnapshotRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(engine::CreateSnapshotSpec spec, ToSpec(request, call->request_id()));
  spec.remember = RememberAs(request.idempotency_key(), [](const engine::SnapshotView& view) { return ToProto(view); });
  absl::StatusOr<engine::SnapshotView> view = co_await engine_->CreateSnapshot(std::move(spec), call->deadline());
  if (!view.ok()) { co_return view.status(); }
  co_return ToProto(*view);
}

Task<absl::StatusOr<v1::ListSnapshotsResponse>> SnapshotService::List(std::shared_ptr<Call> call, v1::ListSnapshotsRequest request) {
  v1::ListSnapshotsResponse response;
  for (const engine::SnapshotView& view : engine_->ListSnapshots()) {
    if (!request.root_tag().empty() && view.row.root_tag.str() != request.root_tag()) { continue; }
    if (MatchesLabels(view.row.labels, request.label())) { *response.add_snapshots() = ToProto(view); }
  }
  co_return response;
}

Task<absl::StatusOr<v1::SnapshotInfo>> SnapshotService::Get(std::shared_ptr<Call> call, v1::GetSnapshotRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SnapshotTag tag, SnapshotTag::Parse(request.tag()));
  FORKD_CO_ASSIGN_OR_RETURN(const engine::SnapshotView view, engine_->GetSnapshot(tag));
  co_return ToProto(view);
}

Task<absl::StatusOr<v1::SnapshotInfoDetail>> SnapshotService::Describe(std::shared_ptr<Call> call, v1::GetSnapshotInfoRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SnapshotTag tag, SnapshotTag::Parse(request.tag()));
  absl::StatusOr<engine::Engine::SnapshotDetail> detail = co_await engine_->DescribeSnapshot(tag);
  if (!detail.ok()) { co_return detail.status(); }
  co_return ToProto(*detail);
}

Task<absl::StatusOr<v1::DeleteSnapshotResponse>> SnapshotService::Delete(std::shared_ptr<Call> call, v1::DeleteSnapshotRequest request) {
  FORKD_CO_ASSIGN_OR_RETURN(const SnapshotTag tag, SnapshotTag::Parse(request.tag()));
  if (request.force() && request.cascade()) {
    co_return InvalidField("force", "force and cascade are mutually exclusive — force orphans children, cascade deletes them; pick one");
  }
  const auto mode = request.cascade() ? engine::Engine::DeleteMode::kCascade
                    : request.force() ? engine::Engine::DeleteMode::kForce
                                      : engine::Engine::DeleteMode::kRefuseDependents;
  FORKD_CO_RETURN_IF_ERROR(co_await engine_->DeleteSnapshot(tag, mode));
  co_return v1::DeleteSnapshotResponse();
}

}  // namespace forkd::server
