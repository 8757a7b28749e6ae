#include "vmm/qemu/qemu_driver.h"

#include <chrono>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "vmm/probe/host_cpu.h"
#include "vmm/probe/qemu_probe.h"
#include "vmm/qemu/qemu_args.h"
#include "vmm/qemu/qemu_vm.h"
#include "vmm/qemu/run_sockets.h"

namespace forkd::vmm {
namespace {

using std::chrono::seconds;

// More is not tried; the microvm machine itself allows 288.
constexpr int kMaxVcpus = 32;
constexpr int64_t kMinMemoryMib = 16;
constexpr int64_t kMaxMemoryMib = 65536;
// What an orderly end of a VM that could not be brought up may take, after the caller's own deadline.
constexpr auto kCleanupTime = seconds(10);

absl::Status CheckId(const std::string& id) {
  bool valid = !id.empty() && id.size() <= 64;
  for (const char c : id) { valid = valid && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'); }
  return valid ? absl::OkStatus() : InvalidField("id", absl::StrCat(Quoted(id), " is not 1 to 64 of a-z, 0-9 and -"));
}

absl::Status CheckShape(MachineShape shape, const RootImage& ram) {
  if (shape.vcpus < 1 || shape.vcpus > kMaxVcpus) { return InvalidField("vcpus", absl::StrCat(shape.vcpus, " is not 1 to ", kMaxVcpus)); }
  if (shape.memory_mib < kMinMemoryMib || shape.memory_mib > kMaxMemoryMib) {
    return InvalidField("memory_mib", absl::StrCat(shape.memory_mib, " is not ", kMinMemoryMib, " to ", kMaxMemoryMib));
  }
  if (ram.size_bytes() != shape.memory_mib << 20) {
    return InvalidField("memory_mib", absl::StrCat("the memory image has ", ram.size_bytes(), " bytes, not ", shape.memory_mib, " MiB"));
  }
  return absl::OkStatus();
}

absl::Status CheckBoot(const BootSpec& spec) {
  FORKD_RETURN_IF_ERROR(CheckId(spec.id));
  if (spec.ram == nullptr || spec.ram->IsSealed()) { return InvalidField("ram", "a parent needs memory that is not sealed"); }
  if (!spec.kernel.valid()) { return InvalidField("kernel", "is missing"); }
  if (spec.kernel_args.find('\0') != std::string::npos) { return InvalidField("kernel_args", "has a NUL byte"); }
  return CheckShape(spec.shape, *spec.ram);
}

absl::Status CheckRestore(const RestoreSpec& spec) {
  FORKD_RETURN_IF_ERROR(CheckId(spec.id));
  if (spec.root == nullptr || !spec.root->IsSealed()) { return InvalidField("root", "a child needs a root image that is sealed"); }
  if (spec.device_state == nullptr || spec.device_state->empty()) { return InvalidField("device_state", "is missing"); }
  return CheckShape(spec.shape, *spec.root);
}

// What QEMU and the libraries, modules and firmware that it loads lie in. A binary of an operator's own is shown with its folder.
std::vector<std::string> VisibleFolders(const std::string& binary) {
  std::vector<std::string> folders = {"/usr"};
  const std::string folder = binary.substr(0, binary.rfind('/'));
  if (!absl::StartsWith(folder, "/usr/") && !folder.empty()) { folders.push_back(folder); }
  return folders;
}

// Binds the sockets and starts QEMU with them and `more`.
absl::StatusOr<SpawnedProcess> LaunchBlocking(Launcher* launcher, const QemuOptions& options, std::vector<std::string> argv,
                                              std::vector<InheritedFd> more, const std::string& run_dir,
                                              const std::vector<UniqueFd>& cgroups) {
  FORKD_ASSIGN_OR_RETURN(const UniqueFd qmp, ListenInRunDir(run_dir, kQmpSocketName));
  absl::StatusOr<UniqueFd> agent = ListenInRunDir(run_dir, kAgentSocketName);
  if (!agent.ok()) {
    RemoveRunSockets(run_dir);
    return agent.status();
  }
  more.push_back({.fd = qmp.get(), .target = kQmpTarget});
  more.push_back({.fd = agent->get(), .target = kAgentTarget});
  std::vector<int> joins;
  for (const UniqueFd& cgroup : cgroups) { joins.push_back(cgroup.get()); }
  absl::StatusOr<SpawnedProcess> process = launcher->Spawn({.argv = std::move(argv),
                                                            .inherited = std::move(more),
                                                            .run_dir = run_dir,
                                                            .cgroups = std::move(joins),
                                                            .walls = options.walls,
                                                            .kvm = options.accelerator == Accelerator::kKvm,
                                                            .visible_folders = VisibleFolders(options.binary)});
  if (process.ok()) { return process; }
  RemoveRunSockets(run_dir);
  if (process.status().code() != absl::StatusCode::kNotFound) { return process.status(); }
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing, process.status().message());
}

// Ends a VM that could not be brought up, and says why it could not. If it does not end either, its destructor has the last word.
Task<absl::Status> EndAfter(std::unique_ptr<QemuVm> vm, absl::Status why) {
  const absl::Status ended = co_await vm->Kill(Deadline::In(kCleanupTime));
  if (!ended.ok()) { why = Annotate(why, absl::StrCat("(", ended.message(), ")")); }
  co_return why;
}

class QemuDriver final : public VmDriver {
 public:
  QemuDriver(QemuOptions options, QemuVersion version, std::string host_cpu, int64_t tsc_khz, Executor executor, BlockingPool* pool,
             Launcher* launcher)
      : options_(std::move(options)),
        version_(std::move(version)),
        host_cpu_(std::move(host_cpu)),
        tsc_khz_(tsc_khz),
        executor_(std::move(executor)),
        pool_(pool),
        launcher_(launcher) {}

  DriverCapabilities capabilities() const override {
    return {.branch = true, .adopt = true, .generation_id = false, .max_vcpus = kMaxVcpus, .accelerator = options_.accelerator};
  }

  MachineRecord RecordFor(MachineShape shape, bool has_rootfs) const override {
    return {.vmm = "qemu",
            .vmm_version = version_.text,
            .machine = QemuMachineLine(options_.accelerator),
            .cpu_model = QemuCpuModel(options_.accelerator),
            .accelerator = std::string(AcceleratorName(options_.accelerator)),
            .devices = absl::StrJoin(QemuDevices(has_rootfs), ";"),
            .shape = absl::StrCat("vcpus=", shape.vcpus, ",memory_mib=", shape.memory_mib),
            .host_cpu = host_cpu_};
  }

  Task<absl::StatusOr<std::unique_ptr<Vm>>> Boot(BootSpec spec, Deadline deadline) override {
    FORKD_CO_RETURN_IF_ERROR(CheckBoot(spec));
    auto launch = [this, &spec] {
      std::vector<InheritedFd> inherited = {{spec.ram->fd(), kRamTarget}, {spec.kernel.get(), kKernelTarget}};
      if (spec.initrd.valid()) { inherited.push_back({spec.initrd.get(), kInitrdTarget}); }
      if (spec.rootfs.valid()) { inherited.push_back({spec.rootfs.get(), kRootfsTarget}); }
      const QemuMachine machine = MachineOf(spec.id, spec.shape, spec.rootfs.valid());
      return LaunchBlocking(launcher_, options_, QemuParentArgs(machine, spec.initrd.valid(), KernelArgs(spec.kernel_args)), std::move(inherited), spec.run_dir,
                            spec.cgroups);
    };
    absl::StatusOr<SpawnedProcess> process = co_await pool_->Run(std::move(launch));
    if (!process.ok()) { co_return process.status(); }
    std::unique_ptr<QemuVm> vm = WatchNew(*std::move(process), spec.id, spec.run_dir, spec.ram);
    absl::Status up = co_await vm->ConnectControl(deadline);
    if (up.ok()) { up = co_await vm->Resume(deadline); }
    if (up.ok()) { co_return vm; }
    co_return co_await EndAfter(std::move(vm), std::move(up));
  }

  Task<absl::StatusOr<std::unique_ptr<Vm>>> Restore(RestoreSpec spec, Deadline deadline) override {
    FORKD_CO_RETURN_IF_ERROR(CheckRestore(spec));
    auto launch = [this, &spec] {
      std::vector<InheritedFd> inherited = {{spec.root->fd(), kRamTarget}};
      if (spec.rootfs.valid()) { inherited.push_back({spec.rootfs.get(), kRootfsTarget}); }
      const QemuMachine machine = MachineOf(spec.id, spec.shape, spec.rootfs.valid());
      return LaunchBlocking(launcher_, options_, QemuChildArgs(machine), std::move(inherited), spec.run_dir,
                            spec.cgroups);
    };
    absl::StatusOr<SpawnedProcess> process = co_await pool_->Run(std::move(launch));
    if (!process.ok()) { co_return process.status(); }
    std::unique_ptr<QemuVm> vm = WatchNew(*std::move(process), spec.id, spec.run_dir, spec.root);
    absl::Status up = co_await vm->ConnectControl(deadline);
    // Before the load, which sets up the devices on what it finds in memory. QEMU greets once its memory is mapped.
    if (up.ok() && spec.pages != nullptr && !spec.pages->empty()) { up = co_await vm->Inject(spec.pages); }
    if (up.ok()) { up = co_await vm->Load(spec.device_state, deadline); }
    if (up.ok()) { co_return vm; }
    co_return co_await EndAfter(std::move(vm), std::move(up));
  }

  Task<absl::StatusOr<std::unique_ptr<Vm>>> Adopt(AdoptSpec spec, Deadline deadline) override {
    FORKD_CO_RETURN_IF_ERROR(CheckId(spec.id));
    absl::StatusOr<Pidfd> pidfd = launcher_->OpenProcess(spec.process);
    if (!pidfd.ok()) { co_return pidfd.status(); }
    absl::StatusOr<RootImage> root = launcher_->OpenRootImage(*pidfd, kRamTarget);
    if (!root.ok()) {
      const absl::Status killed = launcher_->Kill(*pidfd);
      co_return killed.ok() ? root.status() : killed;
    }
    auto vm = std::make_unique<QemuVm>(QemuVm::Parts{.id = spec.id,
                                                     .process = spec.process,
                                                     .pidfd = *std::move(pidfd),
                                                     .run_dir = spec.run_dir,
                                                     .root = std::make_shared<const RootImage>(*std::move(root)),
                                                     .uid = launcher_->AdoptUid(spec.process)},
                                       executor_, pool_, launcher_);
    absl::Status up = co_await vm->ConnectControl(deadline);
    if (up.ok()) { co_return vm; }
    co_return co_await EndAfter(std::move(vm), std::move(up));
  }

  int KillStraysBlocking(const std::string& run_dir_prefix, const std::set<pid_t>& keep) override {
    return launcher_->KillStrays(run_dir_prefix, keep);
  }

 private:
  QemuMachine MachineOf(const std::string& id, MachineShape shape, bool has_rootfs) const {
    return {.binary = options_.binary, .accelerator = options_.accelerator, .shape = shape, .id = id, .has_rootfs = has_rootfs};
  }

  std::string KernelArgs(const std::string& args) const {
    if (tsc_khz_ <= 0) { return args; }
    // tsc=reliable: no watchdog over the TSC. The only other clock of a microvm is the tick itself; on a loaded host the watchdog blames the TSC
    // for ticks that came late, and the guest then falls back to that tick: no high resolution, and 250 wake-ups a second for ever.
    return absl::StrCat(args, args.empty() ? "" : " ", "tsc_early_khz=", tsc_khz_, " tsc=reliable");
  }

  std::unique_ptr<QemuVm> WatchNew(SpawnedProcess process, const std::string& id, const std::string& run_dir,
                                   std::shared_ptr<const RootImage> root) const {
    return std::make_unique<QemuVm>(QemuVm::Parts{.id = id,
                                                  .process = process.id,
                                                  .pidfd = std::move(process.pidfd),
                                                  .stderr_read = std::move(process.stderr_read),
                                                  .run_dir = run_dir,
                                                  .root = std::move(root),
                                                  .uid = std::move(process.uid)},
                                    executor_, pool_, launcher_);
  }

  const QemuOptions options_;
  const QemuVersion version_;
  const std::string host_cpu_;
  const int64_t tsc_khz_;
  const Executor executor_;
  BlockingPool* const pool_;
  Launcher* const launcher_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<VmDriver>> CreateQemuDriverBlocking(QemuOptions options, Executor executor, BlockingPool* pool, Launcher* launcher) {
  FORKD_ASSIGN_OR_RETURN(QemuVersion version, ProbeQemuBlocking(options.binary));
  return std::make_unique<QemuDriver>(std::move(options), std::move(version), HostCpuBlocking(), MeasureTscKhzBlocking(), std::move(executor), pool,
                                      launcher);
}

}  // namespace forkd::vmm
