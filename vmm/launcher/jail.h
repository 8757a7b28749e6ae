// The walls around a VMM process, as one ordered list of steps that it takes between its birth and its program. Reviewing the confinement means
// reading EnterJail in jail.cc.
//
// A jailed process has: new mount, pid, ipc, uts and network namespaces (clone(2) flags, JailCloneFlags); a root of its own in memory, read-only,
// holding what JailSpec names, a /proc of its own pid namespace and the devices it needs; a uid and gid of its own, no supplementary groups, no
// capability in any set, the bounding one included; no_new_privs; an empty session keyring; oom_score_adj 500. Any step that fails ends the launch.
// Not here: seccomp (the VMM brings its own filter, QEMU's -sandbox), cgroups.
#ifndef FORKD_VMM_LAUNCHER_JAIL_H_
#define FORKD_VMM_LAUNCHER_JAIL_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

namespace forkd::vmm {

struct JailSpec {
  // Of this process alone, both; never 0.
  uid_t uid = 0;
  gid_t gid = 0;
  // Host folders that the process sees under the same path, read-only, without devices and set-uid bits. The program and its libraries lie there.
  std::vector<std::string> read_only_folders = {"/usr"};
  // A /dev/kvm that this uid alone may open.
  bool kvm = false;
};

// What EnterJail works from: every string and array it needs, made beforehand, because it runs where nothing may be allocated.
class JailPlan {
 public:
  // `mount_point`: an existing folder of this process alone, over which its root is mounted (in its own mount namespace; the host's is untouched).
  JailPlan(const JailSpec& spec, std::string mount_point);
  ~JailPlan();
  JailPlan(const JailPlan&) = delete;
  JailPlan& operator=(const JailPlan&) = delete;

  struct Parts;
  const Parts& parts() const { return *parts_; }

 private:
  std::unique_ptr<Parts> parts_;
};

// For clone(2): the namespaces that EnterJail expects to be in.
int JailCloneFlags();

// In the new process, single-threaded, its descriptors already in place; async-signal-safe calls alone, so it may share its parent's memory. Null on
// success; otherwise the step that failed, with errno set: the process must exit.
const char* EnterJail(const JailPlan::Parts& plan);

}  // namespace forkd::vmm

#endif  // FORKD_VMM_LAUNCHER_JAIL_H_
