#include "server/admin_service.h"

#include <sys/statvfs.h>
#include <sys/utsname.h>

#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "base/version.h"
#include "server/convert.h"
#include "server/doctor.h"

namespace forkd::server {
namespace {

std::string CpuModel() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (absl::StartsWith(line, "model name")) { return line.substr(line.find(':') + 2); }
  }
  return "unknown";
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::Doctor(grpc::CallbackServerContext* context, const v1::DoctorRequest* request, v1::DoctorResponse* response) {
  return bridge_->Unary<v1::DoctorRequest, v1::DoctorResponse>(context, "Doctor", request, response, std::bind_front(&AdminService::Examine, this));
}

grpc::ServerUnaryReactor* AdminService::GetHostInfo(grpc::CallbackServerContext* context, const v1::GetHostInfoRequest* request, v1::HostInfo* response) {
  return bridge_->Unary<v1::GetHostInfoRequest, v1::HostInfo>(context, "GetHostInfo", request, response, std::bind_front(&AdminService::Describe, this));
}

Task<absl::StatusOr<v1::DoctorResponse>> AdminService::Examine(std::shared_ptr<Call> call, v1::DoctorRequest request) {
  auto examine = [options = options_]() -> absl::StatusOr<v1::DoctorResponse> { return ExamineHostBlocking(*options); };
  co_return co_await pool_->Run(std::move(examine));
}

Task<absl::StatusOr<v1::HostInfo>> AdminService::Describe(std::shared_ptr<Call> call, v1::GetHostInfoRequest request) {
  v1::HostInfo info;
  info.set_version(kVersion);
  info.set_api(kApiVersion);
  info.set_started_at_unix(started_at_unix_);
  info.set_memory_budget_mib(engine_->admission().budget_mib());
  info.set_memory_reserved_mib(engine_->admission().reserved_mib());
  info.set_state_dir(engine_->options().state_dir);
  info.set_snapshot_count(static_cast<int32_t>(engine_->ListSnapshots().size()));
  info.set_sandbox_count(static_cast<int32_t>(engine_->ListSandboxes().size()));
  const vmm::MachineRecord record = engine_->driver().RecordFor(vmm::MachineShape{1, 512}, true);
  v1::VmmInfo* vmm = info.add_vmms();
  vmm->set_name(record.vmm);
  vmm->set_version(record.vmm_version);
  vmm->set_path(options_->qemu);
  vmm->set_accelerator(record.accelerator);
  vmm->set_isolation(IsolationOf(record.accelerator));
  auto look = [this, info]() mutable -> absl::StatusOr<v1::HostInfo> {
    utsname name{};
    uname(&name);
    info.set_kernel(name.release);
    info.set_cpu_model(CpuModel());
    info.set_cpu_count(static_cast<int32_t>(std::thread::hardware_concurrency()));
    info.set_memory_total_mib(engine::HostTotalMib());
    struct statvfs fs {};
    if (statvfs(info.state_dir().c_str(), &fs) == 0) { info.set_state_free_bytes(static_cast<int64_t>(fs.f_bavail * fs.f_frsize)); }
    for (const engine::ImageSummary& image : images_->ListBlocking()) {
      v1::ImageInfo* to = info.add_images();
      to->set_name(image.name);
      to->set_hash(image.hash);
      to->set_size_bytes(image.size_bytes);
    }
    return std::move(info);
  };
  co_return co_await pool_->Run(std::move(look));
}

}  // namespace forkd::server
