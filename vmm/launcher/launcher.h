// The one class that starts VMM processes and reaches into them: everything in the daemon that needs privilege over another process. It becomes
// the root broker, a process of its own; hence its interface is plain data and descriptors, and it knows neither Asio nor any VMM's protocol.
#ifndef FORKD_VMM_LAUNCHER_LAUNCHER_H_
#define FORKD_VMM_LAUNCHER_LAUNCHER_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapping.h"
#include "base/page_set.h"
#include "base/pidfd.h"
#include "base/unique_fd.h"
#include "vmm/launcher/uid_pool.h"
#include "vmm/pages/diverged_pages.h"
#include "vmm/pages/root_image.h"

namespace forkd::vmm {

// A descriptor that a new process is born with. `fd` is borrowed; `target` is its number in the new process, 3 or more, each once.
struct InheritedFd {
  int fd = -1;
  int target = -1;
};

// How much of the host a process sees (jail.h).
enum class Walls {
  kNone,  // as the daemon itself: for tests, and for hosts where an operator says so
  kJail,
};

struct SpawnSpec {
  // argv[0] is the program's absolute path.
  std::vector<std::string> argv;
  // Everything else is closed; 0 and 1 are /dev/null, 2 is a pipe.
  std::vector<InheritedFd> inherited;
  // The VM's run folder, in its environment as FORKD_RUN_DIR: by it KillStrays finds what a killed daemon left behind.
  std::string run_dir;
  // RLIMIT_NOFILE; RLIMIT_CORE is always 0 (a core file would hold guest memory).
  int64_t max_open_files = 1024;
  // Borrowed descriptors of cgroup files ("cgroup.procs") into which the process writes itself before its program runs: not a byte of it is
  // charged elsewhere.
  std::vector<int> cgroups;
  Walls walls = Walls::kNone;
  // With kJail: the process may open /dev/kvm.
  bool kvm = false;
  // With kJail: host folders that it sees, read-only. The program and what it loads must lie in one of them. run_dir must exist.
  std::vector<std::string> visible_folders = {"/usr"};
};

struct SpawnedProcess {
  ProcessId id;
  Pidfd pidfd;
  // Non-blocking read end of its standard error. The pipe is 64 KiB; its write end is non-blocking too, so that a VMM which writes more than is
  // read loses text instead of hanging.
  UniqueFd stderr_read;
  // With kJail: the uid that it runs under, its own while this is held. Keep it until the process has ended.
  UidLease uid;
};

// What CollectDivergedPages can have done beforehand, while the guest still runs.
struct CollectPlan {
  std::vector<RootMapping> mappings;
  // Faulted in, for as many pages as have diverged by now and some more.
  Mapping buffer;
};

// Blocking, any thread, concurrently.
class Launcher {
 public:
  explicit Launcher(UidRange jail_uids = {}) : uids_(jail_uids) {}

  // Starts a process in a session of its own, without a parent-death signal: VMMs outlive the daemon. NOT_FOUND if the program is missing,
  // otherwise the errno of the step that refused.
  absl::StatusOr<SpawnedProcess> Spawn(const SpawnSpec& spec);

  // Takes up a process that an earlier daemon started. NOT_FOUND if it is gone.
  absl::StatusOr<Pidfd> OpenProcess(ProcessId id);
  // The uid of a jailed process that an earlier daemon started; an empty lease for one that is not jailed.
  UidLease AdoptUid(ProcessId id);
  // The root image that a VMM holds as its descriptor `target`.
  absl::StatusOr<RootImage> OpenRootImage(const Pidfd& process, int target);

  // The pages of `process` that differ from the root image, in ascending order; pages injected before are among them. The guest must be stopped.
  // FAILED_PRECONDITION (VMM_FAILED) if the process has ended or maps no private copy of `root`.
  absl::StatusOr<PageSet> CollectDivergedPages(ProcessId process, const RootImage& root, CollectPlan plan = {});
  // Half of the work of CollectDivergedPages, for the time before the guest is stopped. The guest may run.
  absl::StatusOr<CollectPlan> PrepareCollect(ProcessId process, const RootImage& root);
  // Writes `pages` into the process's private copy of `root`. The guest must not have run since it was started. On error the process is unfit
  // for use. INVALID_ARGUMENT if a page lies beyond the root's end.
  absl::Status Inject(ProcessId process, const RootImage& root, const PageSet& pages);

  // Ends every process whose FORKD_RUN_DIR begins with `run_dir_prefix` and whose pid is not in `keep`, and waits up to 5 s for their ends.
  // Returns how many there were.
  int KillStrays(const std::string& run_dir_prefix, const std::set<pid_t>& keep);

  // SIGKILL; does not wait. OK if it has ended already.
  absl::Status Kill(const Pidfd& process);

 private:
  UidPool uids_;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_LAUNCHER_LAUNCHER_H_
