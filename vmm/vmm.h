// The one interface to microVM monitors. Two drivers stand behind it: QEMU (runs anywhere) and Firecracker.
//
// A VM's life:  Boot → running (the parent)         Restore → paused (a child)
//               Pause ⇄ Resume;  paused: SaveDeviceState, CollectDivergedPages;  any state: Kill.
// A root snapshot is the parent's device state + its RAM (BootSpec::ram, sealed once the parent is dead). A branch is a child's device state +
// the pages in which it differs from its root; both are restored by Restore.
//
// All methods run on the runtime's I/O thread; blocking steps go to a pool inside. At most one operation of a VM is under way at a time, Kill
// excepted: whatever waits when the VMM dies or is killed answers UNAVAILABLE (VMM_FAILED). Errors common to all: DEADLINE_EXCEEDED (DEADLINE);
// UNAVAILABLE (VMM_FAILED) the VMM has ended; INTERNAL (VMM_FAILED) it answered with an error; INTERNAL (VMM_PROTOCOL) it broke its protocol;
// FAILED_PRECONDITION (HOST_MISSING) its program is not installed. A deadline that passes ends the wait, not the operation: it may
// still take effect, and a later operation comes after it; so a caller in a hurry cannot spoil a VM. One that has not answered 30 s after that
// is given up (OnExit, kInternalError), as is one that breaks its protocol: only Kill is of use then.
#ifndef FORKD_VMM_VMM_H_
#define FORKD_VMM_VMM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/async.h"
#include "base/deadline.h"
#include "base/page_set.h"
#include "base/pidfd.h"
#include "base/unique_fd.h"
#include "vmm/pages/root_image.h"

namespace forkd::vmm {

enum class Accelerator {
  kTcg,  // software emulation: no boundary against hostile code
  kKvm,
};
absl::string_view AcceleratorName(Accelerator accelerator);  // "tcg", "kvm"

// What a snapshot was taken of and what its children get; nothing of it can change at restore.
struct MachineShape {
  int vcpus = 1;            // 1 … DriverCapabilities::max_vcpus
  int64_t memory_mib = 256;  // 16 … 65536
};

// Everything that must be equal where a device state is made and where it is loaded. Kept in the snapshot's manifest; compared at restore by the
// engine, because the VMMs themselves load many a mismatch without a word and run on.
struct MachineRecord {
  std::string vmm;           // "qemu"
  std::string vmm_version;   // "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
  std::string machine;       // machine line: "microvm,acpi=on,…"
  std::string cpu_model;     // "max"
  std::string accelerator;   // AcceleratorName
  std::string devices;       // comma-separated, in the order of their slots
  std::string shape;         // "vcpus=2,memory_mib=256"
  std::string host_cpu;      // vendor, family, model, stepping and feature flags of the host

  friend bool operator==(const MachineRecord&, const MachineRecord&) = default;
  // For the manifest: one entry a field, under the names above.
  std::map<std::string, std::string> ToMap() const;
  // Unknown keys are refused, missing ones too: INVALID_ARGUMENT.
  static absl::StatusOr<MachineRecord> FromMap(const std::map<std::string, std::string>& map);
};
// What differs, in words for an error message ("vmm_version is "7.2.22", the snapshot was made with "8.2.0""); empty if equal.
std::string MachineDifference(const MachineRecord& snapshot, const MachineRecord& here);

struct DriverCapabilities {
  bool branch = false;           // CollectDivergedPages, and RestoreSpec::pages
  bool adopt = false;            // VMs outlive the daemon and can be taken up again
  bool generation_id = false;    // the guest sees a new generation id after each restore
  int max_vcpus = 1;
  Accelerator accelerator = Accelerator::kTcg;
};

struct BootSpec {
  std::string id;      // 1 … 64 of [a-z0-9-], for names of processes and logs
  MachineShape shape;
  UniqueFd kernel;     // bzImage, or an ELF with a PVH note
  UniqueFd initrd;     // optional
  UniqueFd rootfs;     // optional; attached read-only as the first block device (/dev/vda)
  std::string kernel_args;
  // The guest's RAM; memory_mib in size, not sealed. Complete, and fit to be sealed, once SaveDeviceState has returned and the VM was killed.
  std::shared_ptr<RootImage> ram;
  // An existing folder of this VM alone (0700), where its sockets live. Kill removes what the driver made there, not the folder.
  std::string run_dir;
  // Of cgroup files that the VMM joins before it runs.
  std::vector<UniqueFd> cgroups;
};

struct RestoreSpec {
  std::string id;
  MachineShape shape;
  std::shared_ptr<const RootImage> root;  // sealed
  UniqueFd rootfs;                        // the file that the parent had, if it had one
  std::shared_ptr<const std::string> device_state;
  std::shared_ptr<const PageSet> pages;   // null for the root itself
  std::string run_dir;
  std::vector<UniqueFd> cgroups;
};

struct AdoptSpec {
  std::string id;
  ProcessId process;
  std::string run_dir;
};

enum class VmStatus {
  kRunning,
  kPaused,
  kFailed,  // the guest or the VMM is stopped for good: internal error, panic, shutdown
};

// Why a VM is of no use any more.
struct VmExit {
  enum class Kind {
    kKilled,         // by Kill
    kShutdown,       // the guest powered off or reset itself
    kPanicked,       // the guest kernel said so
    kInternalError,  // the VMM could not go on (KVM emulation failure and the like); the process stays until Kill
    kProcessEnded,   // the VMM ended by itself or by another's signal
  };
  Kind kind = Kind::kProcessEnded;
  // For people: what happened, with the wait status and the end of the VMM's standard error where there is any; escaped.
  std::string reason;
};

class Vm {
 public:
  Vm(ProcessId process, std::shared_ptr<const RootImage> root) : process_(process), root_(std::move(root)) {}
  // Ends the process unless Kill or Release was called; does not wait for it.
  virtual ~Vm() = default;
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // For the registry: by this and run_dir the next daemon adopts the VM.
  ProcessId process() const { return process_; }
  // The root image that its memory is, or is a private copy of.
  const std::shared_ptr<const RootImage>& root() const { return root_; }

  // Both idempotent.
  virtual Task<absl::Status> Pause(Deadline deadline) = 0;
  virtual Task<absl::Status> Resume(Deadline deadline) = 0;
  virtual Task<absl::StatusOr<VmStatus>> QueryStatus(Deadline deadline) = 0;

  // Paused only, else FAILED_PRECONDITION (SANDBOX_NOT_PAUSED). A few KB, all but the RAM. The VM may be resumed afterwards.
  virtual Task<absl::StatusOr<std::string>> SaveDeviceState(Deadline deadline) = 0;
  // Optional: does of CollectDivergedPages what can be done while the guest still runs, so that it is stopped for a shorter time. Forgotten at
  // Resume. Memory of about the diverged pages' size is taken meanwhile.
  virtual Task<absl::Status> PrepareBranch(Deadline deadline) { co_return absl::OkStatus(); }
  // Paused children only. All pages that differ from root(), those that were injected at Restore included: complete in itself.
  virtual Task<absl::StatusOr<PageSet>> CollectDivergedPages(Deadline deadline) = 0;

  // A new stream to the guest agent's port; non-blocking, close-on-exec. The VM serves one at a time: close the old one first, or the new one
  // waits. What was under way on the old one may still arrive.
  virtual Task<absl::StatusOr<UniqueFd>> ConnectAgent(Deadline deadline) = 0;
  // The console's newest bytes since the last read, at most `max_bytes` (≤ 65536). Guest's bytes: escape them before they are shown.
  virtual Task<absl::StatusOr<std::string>> ReadConsole(int64_t max_bytes, Deadline deadline) = 0;

  // Ends the process and waits until it is gone. Idempotent; OK if it had ended.
  virtual Task<absl::Status> Kill(Deadline deadline) = 0;
  // Called once, on the I/O thread, when the VM has become useless, for whatever reason; at once if it is already. Replaces an earlier callback.
  // It may destroy nothing of the VM itself; call Kill (from a coroutine) to be rid of it.
  virtual void OnExit(absl::AnyInvocable<void(const VmExit&)> callback) = 0;
  // Lets go of the VM without ending it, for a daemon that stops: the next one adopts it. Nothing else may be called afterwards.
  virtual void Release() = 0;

 private:
  ProcessId process_;
  std::shared_ptr<const RootImage> root_;
};

class VmDriver {
 public:
  virtual ~VmDriver() = default;

  virtual DriverCapabilities capabilities() const = 0;
  // What MachineRecord a VM of this shape, with or without a rootfs, has here and now.
  virtual MachineRecord RecordFor(MachineShape shape, bool has_rootfs) const = 0;

  // The guest runs when this returns (not: has booted).
  virtual Task<absl::StatusOr<std::unique_ptr<Vm>>> Boot(BootSpec spec, Deadline deadline) = 0;
  // Loaded and paused when this returns; no instruction of the guest has run.
  virtual Task<absl::StatusOr<std::unique_ptr<Vm>>> Restore(RestoreSpec spec, Deadline deadline) = 0;
  // Takes up a live VM of an earlier daemon. NOT_FOUND if its process is gone; after any other error it has been ended.
  virtual Task<absl::StatusOr<std::unique_ptr<Vm>>> Adopt(AdoptSpec spec, Deadline deadline) = 0;
  // Ends (SIGKILL, and waits up to a few seconds for) every VMM process that was started with a run_dir below `run_dir_prefix` ("/var/lib/forkd/run/")
  // and whose pid is not in `keep`: what a killed daemon had started and no row accounts for. A process names its run_dir in its environment
  // (FORKD_RUN_DIR, set at Spawn), which is how it is found, whatever moment the daemon died at. Returns how many. Blocking.
  virtual int KillStraysBlocking(const std::string& run_dir_prefix, const std::set<pid_t>& keep) = 0;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_VMM_H_
