// forkd.v1.AdminService: for operators.
#ifndef FORKD_SERVER_ADMIN_SERVICE_H_
#define FORKD_SERVER_ADMIN_SERVICE_H_

#include <memory>

#include "base/blocking_pool.h"
#include "engine/engine.h"
#include "proto/forkd/v1/admin.grpc.pb.h"
#include "server/call.h"
#include "server/options.h"

namespace forkd::server {

// Borrows all; they outlive it.
class AdminService final : public v1::AdminService::CallbackService {
 public:
  AdminService(CallBridge* bridge, engine::Engine* engine, engine::GuestImages* images, BlockingPool* pool, const ServeOptions* options)
      : bridge_(bridge), engine_(engine), images_(images), pool_(pool), options_(options), started_at_unix_(engine::NowUnix()) {}

  grpc::ServerUnaryReactor* Doctor(grpc::CallbackServerContext* context, const v1::DoctorRequest* request, v1::DoctorResponse* response) override;
  grpc::ServerUnaryReactor* GetHostInfo(grpc::CallbackServerContext* context, const v1::GetHostInfoRequest* request, v1::HostInfo* response) override;

 private:
  Task<absl::StatusOr<v1::DoctorResponse>> Examine(std::shared_ptr<Call> call, v1::DoctorRequest request);
  Task<absl::StatusOr<v1::HostInfo>> Describe(std::shared_ptr<Call> call, v1::GetHostInfoRequest request);

  CallBridge* const bridge_;
  engine::Engine* const engine_;
  engine::GuestImages* const images_;
  BlockingPool* const pool_;
  const ServeOptions* const options_;
  const int64_t started_at_unix_;
};

}  // namespace forkd::server

#endif  // FORKD_SERVER_ADMIN_SERVICE_H_
