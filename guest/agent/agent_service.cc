#include "guest/agent/agent_service.h"

#include <time.h>
#include <unistd.h>

#include "guest/agent/files.h"
#include "guest/agent/warmup.h"

namespace forkd::agent {
namespace {

namespace pb = ::forkd::agent::v1;

constexpr const char* kServiceName = "forkd.agent.v1.AgentService";
constexpr const char* kVersion = "0.1.0";
constexpr uint32_t kProtocol = 1;

int64_t NowNs(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Parses the payload and calls `fn`, or answers that it is malformed.
template <typename Request, typename Fn>
void Unary(const ttrpc::Request& request, Call call, Fn fn) {
  Request message;
  if (!message.ParseFromString(request.payload())) {
    call.Finish({Code::kInvalidArgument, "malformed request message"});
    return;
  }
  fn(message);
}

}  // namespace

std::shared_ptr<StreamHandler> AgentService::Dispatch(const ttrpc::Request& request, bool streaming, Call call) {
  const std::string& method = request.method();
  if (request.service() != kServiceName) {
    call.Finish({Code::kUnimplemented, "unknown service"});
    return nullptr;
  }
  if (streaming) {
    if (method == "Exec") { return execs_.NewStream(call); }
    if (method == "ReadFile") { return NewFileRead(call); }
    if (method == "WriteFile") { return NewFileWrite(call); }
    call.Finish({Code::kUnimplemented, "no such streaming method: " + method});
    return nullptr;
  }
  if (method == "Ping") {
    Ping(call);
  } else if (method == "Prepare") {
    Unary<pb::PrepareRequest>(request, call, [&](const pb::PrepareRequest& message) { preparer_.Prepare(message, call); });
  } else if (method == "Eval") {
    Unary<pb::EvalRequest>(request, call, [&](const pb::EvalRequest& message) {
      runner_.Eval(message, [call](const Status& status, const pb::EvalResponse& response) {
        if (status.ok()) {
          call.Reply(response);
        } else {
          call.Finish(status);
        }
      });
    });
  } else if (method == "Warmup") {
    Unary<pb::WarmupRequest>(request, call, [&](const pb::WarmupRequest& message) { StartWarmup(loop_, &runner_, message, call); });
  } else if (method == "SignalExec") {
    Unary<pb::SignalExecRequest>(request, call, [&](const pb::SignalExecRequest& message) {
      const Status status = execs_.Signal(message.exec_id(), message.signal());
      if (status.ok()) {
        call.Reply(pb::SignalExecResponse());
      } else {
        call.Finish(status);
      }
    });
  } else if (method == "ListDirectory") {
    Unary<pb::ListDirectoryRequest>(request, call, [&](const pb::ListDirectoryRequest& message) { ListDirectory(message, call); });
  } else if (method == "StatFile") {
    Unary<pb::StatFileRequest>(request, call, [&](const pb::StatFileRequest& message) { StatFile(message, call); });
  } else if (method == "RemoveFile") {
    Unary<pb::RemoveFileRequest>(request, call, [&](const pb::RemoveFileRequest& message) { RemoveFile(message, call); });
  } else if (method == "Sync") {
    sync();
    call.Reply(pb::SyncResponse());
  } else {
    call.Finish({Code::kUnimplemented, "no such method: " + method});
  }
  return nullptr;
}

void AgentService::Ping(Call call) {
  pb::PingResponse response;
  response.set_agent_version(kVersion);
  response.set_protocol(kProtocol);
  response.set_uptime_ns(static_cast<uint64_t>(NowNs(CLOCK_BOOTTIME)));
  response.set_wall_clock_ns(NowNs(CLOCK_REALTIME));
  response.set_generation(preparer_.generation());
  response.set_boot_id(BootId());
  response.set_running_execs(execs_.size());
  response.set_runner(runner_.state());
  call.Reply(response);
}

void AgentService::Shutdown() {
  execs_.KillAll();
  runner_.Kill();
}

}  // namespace forkd::agent
