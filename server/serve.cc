// Wiring: makes the daemon's parts, in the order in which they need each other, and ends them in reverse.
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/blocking_pool.h"
#include "base/error.h"
#include "base/runtime.h"
#include "base/version.h"
#include "cgroup/cgroup_tree.h"
#include "engine/engine.h"
#include "engine/registry/registry.h"
#include "engine/registry/state_dir.h"
#include "server/admin_service.h"
#include "server/call.h"
#include "server/gateway/gateway.h"
#include "server/options.h"
#include "server/registry_idempotency.h"
#include "server/sandbox_service.h"
#include "server/snapshot_service.h"
#include "snapshot/store.h"
#include "spdlog/spdlog.h"
#include "vmm/launcher/launcher.h"
#include "vmm/probe/accelerator_probe.h"
#include "vmm/qemu/qemu_driver.h"

namespace forkd::server {
namespace {

// fsyncs and page copies wait on disk and memory, not on the CPU: a few more than cores.
constexpr int kPoolThreads = 6;
// One message of gRPC carries at most a megabyte of file or output and its envelope.
constexpr int kMaxMessageBytes = 8 * 1024 * 1024;
constexpr std::chrono::seconds kDrain{10};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "forkd-controller: %s\n", std::string(status.message()).c_str());
  return 1;
}

// gRPC without TLS and tokens is for this machine alone.
bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") || absl::StartsWith(address, "[::1]:") ||
         absl::StartsWith(address, "unix:");
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) { return; }
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

vmm::Accelerator ChooseAccelerator(const std::string& wanted) {
  if (wanted == "tcg") { return vmm::Accelerator::kTcg; }
  const vmm::AcceleratorProbe probe = vmm::ProbeKvmBlocking();
  if (wanted == "kvm" || probe.usable) {
    spdlog::info("accelerator kvm: {}", probe.reason);
    return vmm::Accelerator::kKvm;
  }
  spdlog::warn("accelerator tcg, software emulation: {}. Sandboxes are NOT walled against hostile code on this host", probe.reason);
  return vmm::Accelerator::kTcg;
}

absl::StatusOr<std::unique_ptr<snapshot::SnapshotStore>> OpenStore(const engine::StateDir& state_dir, const std::string& snapshot_root) {
  if (snapshot_root.empty()) { return snapshot::SnapshotStore::OpenBlocking(state_dir.fd()); }
  absl::StatusOr<engine::StateDir> folder = engine::StateDir::OpenBlocking(snapshot_root);
  if (!folder.ok()) { return folder.status(); }
  return snapshot::SnapshotStore::OpenFolderBlocking(folder->fd());
}

// Null where the host has no controllers: sandboxes then run without quotas, and one that asks for a quota is refused.
std::unique_ptr<cgroup::CgroupTree> OpenCgroups() {
  absl::StatusOr<std::unique_ptr<cgroup::CgroupTree>> tree = cgroup::OpenCgroupTree();
  if (tree.ok()) { return *std::move(tree); }
  spdlog::warn("no quotas: {}", std::string(tree.status().message()));
  return nullptr;
}

// The gateway's channel carries what gRPC's port does: a megabyte of file, or two outputs of 16 MiB, each also in its raw form.
constexpr int kMaxAnswerBytes = 80 * 1024 * 1024;
constexpr char kDefaultRestBind[] = "127.0.0.1:8889";

absl::StatusOr<std::unique_ptr<gateway::Gateway>> StartGateway(const ServeOptions& options, Executor executor, grpc::Server* server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxAnswerBytes);
  gateway::GatewayOptions rest;
  rest.bind = options.bind.empty() ? kDefaultRestBind : options.bind;
  rest.version = kVersion;
  absl::StatusOr<std::unique_ptr<gateway::Gateway>> started = gateway::Gateway::Start(executor, server->InProcessChannel(arguments), rest);
  if (!started.ok() && options.bind.empty()) {
    // Nobody asked for this very port: a second daemon on its own gRPC port serves without.
    spdlog::error("no REST: {}", std::string(started.status().message()));
    return std::unique_ptr<gateway::Gateway>();
  }
  return started;
}

void WriteReadyFile(const std::string& path, const std::string& grpc_address, const std::string& rest_address) {
  // Renamed into place: a reader sees all of it or nothing.
  const std::string temporary = absl::StrCat(path, ".tmp");
  std::ofstream(temporary) << "grpc=" << grpc_address << "\n" << (rest_address.empty() ? "" : absl::StrCat("rest=", rest_address, "\n"));
  if (rename(temporary.c_str(), path.c_str()) != 0) { spdlog::error("ready file not written path={}", path); }
}

int WaitForSignal(const sigset_t& signals) {
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) == 0 && signal != SIGHUP) { return signal; }
    spdlog::info("SIGHUP: nothing to read again");
  }
}

}  // namespace

int Serve(const ServeOptions& options) {
  spdlog::set_level(spdlog::level::from_str(options.log_level));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%fZ %l %v", spdlog::pattern_time_type::utc);
  if (geteuid() != 0) {
    std::fprintf(stderr, "forkd-controller: serve needs root: it makes namespaces and starts VMMs (sudo forkd-controller serve)\n");
    return 1;
  }
  if (const absl::Status loopback = gateway::CheckLoopback(options.bind.empty() ? kDefaultRestBind : options.bind); !loopback.ok()) { return Fail(loopback); }
  if (!IsLoopback(options.grpc_bind)) {
    std::fprintf(stderr,
                 "forkd-controller: refusing unauthenticated non-loopback bind %s; bind to 127.0.0.1/::1 for local-only use\n",
                 options.grpc_bind.c_str());
    return 1;
  }
  RaiseDescriptorLimit();
  // Before any thread exists, so that every thread inherits the mask and sigwait gets them all.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) { sigaddset(&signals, signal); }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  absl::StatusOr<engine::StateDir> state_dir = engine::StateDir::OpenBlocking(options.state_dir);
  if (!state_dir.ok()) { return Fail(state_dir.status()); }
  absl::StatusOr<engine::StateDirLock> lock = engine::StateDirLock::TakeBlocking(*state_dir);
  if (!lock.ok()) { return Fail(lock.status()); }
  absl::StatusOr<std::unique_ptr<engine::Registry>> registry = engine::Registry::OpenBlocking(state_dir->path());
  if (!registry.ok()) { return Fail(registry.status()); }
  const std::string snapshot_root = options.snapshot_root.empty() ? absl::StrCat(state_dir->path(), "/snapshots") : options.snapshot_root;
  absl::StatusOr<std::unique_ptr<snapshot::SnapshotStore>> store = OpenStore(*state_dir, options.snapshot_root);
  if (!store.ok()) { return Fail(store.status()); }
  engine::GuestImages images(options.image_root.empty() ? absl::StrCat(state_dir->path(), "/images") : options.image_root);

  Runtime runtime;
  BlockingPool pool(kPoolThreads);
  vmm::Launcher launcher;
  vmm::QemuOptions qemu;
  qemu.binary = options.qemu;
  qemu.accelerator = ChooseAccelerator(options.accelerator);
  absl::StatusOr<std::unique_ptr<vmm::VmDriver>> driver = vmm::CreateQemuDriverBlocking(qemu, runtime.executor(), &pool, &launcher);
  if (!driver.ok()) { return Fail(driver.status()); }

  engine::EngineOptions engine_options;
  engine_options.state_dir = state_dir->path();
  engine_options.snapshot_root = snapshot_root;
  engine_options.memory_budget_mib = options.memory_budget_mib > 0 ? options.memory_budget_mib : engine::HostTotalMib() * 4 / 5;
  engine_options.restore_window = std::max(2, static_cast<int>(std::thread::hardware_concurrency()));
  engine_options.max_sandboxes = options.max_sandboxes;
  if (options.standby_default != "auto") { engine_options.standby.fixed_target = std::stoi(options.standby_default); }
  const std::unique_ptr<cgroup::CgroupTree> cgroups = OpenCgroups();
  auto engine = std::make_unique<engine::Engine>(
      engine::Engine::Parts{&runtime, &pool, registry->get(), store->get(), driver->get(), &images, cgroups.get()}, engine_options);
  runtime.Start();
  absl::Status recovered;
  auto recover = [](engine::Engine* e, absl::Status* result) -> Task<void> { *result = co_await e->Recover(); };
  runtime.RunBlocking(recover(engine.get(), &recovered));
  if (!recovered.ok()) {
    runtime.Stop();
    return Fail(recovered);
  }

  RegistryIdempotency idempotency(registry->get(), &pool);
  CallBridge bridge(&runtime, &idempotency, {});
  SnapshotService snapshots(&bridge, engine.get());
  SandboxService sandboxes(&bridge, engine.get());
  AdminService admin(&bridge, engine.get(), &images, &pool, &options);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.grpc_bind, grpc::InsecureServerCredentials(), &port);
  // A second daemon on the same port must be refused, not share its calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.RegisterService(&snapshots);
  builder.RegisterService(&sandboxes);
  builder.RegisterService(&admin);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  auto release = [](engine::Engine* e) -> Task<void> {
    e->BeginShutDown();
    co_await e->ShutDown(/*stop_sandboxes=*/false);
  };
  if (server == nullptr || port == 0) {
    std::fprintf(stderr, "forkd-controller: cannot listen on %s (is another daemon running? choose --grpc-bind)\n", options.grpc_bind.c_str());
    runtime.RunBlocking(release(engine.get()));
    runtime.Stop();
    return 1;
  }
  absl::StatusOr<std::unique_ptr<gateway::Gateway>> rest = StartGateway(options, runtime.executor(), server.get());
  if (!rest.ok()) {
    server->Shutdown();
    runtime.RunBlocking(release(engine.get()));
    runtime.Stop();
    return Fail(rest.status());
  }
  const std::string rest_address = *rest == nullptr ? "" : (*rest)->address();
  const std::string address =
      absl::StartsWith(options.grpc_bind, "unix:") ? options.grpc_bind : absl::StrCat(options.grpc_bind.substr(0, options.grpc_bind.rfind(':')), ":", port);
  spdlog::info("forkd {} serves grpc={} rest={} state_dir={} accelerator={}", kVersion, address, rest_address, state_dir->path(),
               std::string(vmm::AcceleratorName(qemu.accelerator)));
  if (!options.ready_file.empty()) { WriteReadyFile(options.ready_file, address, rest_address); }

  const int signal = WaitForSignal(signals);
  spdlog::info("stopping signal={} sandboxes={}", signal, options.stop_sandboxes_on_exit ? "deleted" : "left running");
  runtime.Post([&engine] { engine->BeginShutDown(); });
  if (*rest != nullptr) { runtime.RunBlocking((*rest)->Stop()); }
  server->Shutdown(std::chrono::system_clock::now() + kDrain);
  auto shut_down = [](engine::Engine* e, bool stop) -> Task<void> { co_await e->ShutDown(stop); };
  runtime.RunBlocking(shut_down(engine.get(), options.stop_sandboxes_on_exit));
  runtime.Stop();
  if (!options.ready_file.empty()) { unlink(options.ready_file.c_str()); }
  engine.reset();
  return 0;
}

}  // namespace forkd::server
