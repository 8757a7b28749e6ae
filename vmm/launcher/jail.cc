#include "vmm/launcher/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <utility>

namespace forkd::vmm {
namespace {

// The root holds folders, symlinks and device nodes alone: 64 KiB is ample, and the process cannot fill the host's memory through it (it is
// read-only besides).
constexpr char kRootOptions[] = "size=64k,nr_inodes=64,mode=0755";
constexpr char kOomScoreAdj[] = "500";
// CAP_LAST_CAP of kernels to come; PR_CAPBSET_DROP answers EINVAL beyond the running kernel's last one.
constexpr unsigned long kCapabilityEnd = 64;

constexpr unsigned kMemDevices = 1;    // Documentation/admin-guide/devices.txt, major 1
constexpr unsigned kNullMinor = 3;
constexpr unsigned kUrandomMinor = 9;
constexpr unsigned kMiscDevices = 10;  // major 10
constexpr unsigned kKvmMinor = 232;

bool WriteText(const char* path, const char* text, std::size_t size) {
  const int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) { return false; }
  const bool written = ::write(fd, text, size) == static_cast<ssize_t>(size);
  const int error = errno;
  ::close(fd);
  errno = error;
  return written;
}

bool MakeDevice(const char* path, unsigned major_number, unsigned minor_number, mode_t mode) {
  return ::mknod(path, S_IFCHR, makedev(major_number, minor_number)) == 0 && ::chmod(path, mode) == 0;
}

}  // namespace

struct JailPlan::Parts {
  std::string mount_point;
  uid_t uid;
  gid_t gid;
  bool kvm;
  // Pairs of a host folder and the same path relative to the new root.
  struct Folder {
    std::string host;
    std::string inside;
    // Every prefix of `inside` that must be made, shortest first.
    std::vector<std::string> parents;
  };
  std::vector<Folder> folders;
};

JailPlan::JailPlan(const JailSpec& spec, std::string mount_point) : parts_(std::make_unique<Parts>()) {
  parts_->mount_point = std::move(mount_point);
  parts_->uid = spec.uid;
  parts_->gid = spec.gid;
  parts_->kvm = spec.kvm;
  for (const std::string& host : spec.read_only_folders) {
    Parts::Folder folder;
    folder.host = host;
    folder.inside = host.substr(host.find_first_not_of('/'));
    for (std::size_t slash = folder.inside.find('/'); slash != std::string::npos; slash = folder.inside.find('/', slash + 1)) {
      folder.parents.push_back(folder.inside.substr(0, slash));
    }
    folder.parents.push_back(folder.inside);
    parts_->folders.push_back(std::move(folder));
  }
}

JailPlan::~JailPlan() = default;

int JailCloneFlags() { return CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET; }

const char* EnterJail(const JailPlan::Parts& plan) {
  // While the host's /proc is still there. Killed before the daemon and before anything that belongs to nobody.
  if (!WriteText("/proc/self/oom_score_adj", kOomScoreAdj, sizeof(kOomScoreAdj) - 1)) { return "set oom_score_adj"; }

  // A root of its own.
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) { return "make mounts private"; }
  if (::mount("forkd-jail", plan.mount_point.c_str(), "tmpfs", MS_NOSUID | MS_NOEXEC, kRootOptions) != 0) { return "mount a root"; }
  if (::chdir(plan.mount_point.c_str()) != 0) { return "enter the root"; }
  for (const JailPlan::Parts::Folder& folder : plan.folders) {
    for (const std::string& parent : folder.parents) {
      if (::mkdir(parent.c_str(), 0755) != 0 && errno != EEXIST) { return "make a folder in the root"; }
    }
    if (::mount(folder.host.c_str(), folder.inside.c_str(), nullptr, MS_BIND, nullptr) != 0) { return "show a folder of the host"; }
    if (::mount(nullptr, folder.inside.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, nullptr) != 0) {
      return "make a folder of the host read-only";
    }
  }
  // Where Debian's merged /usr has the dynamic loader and its libraries.
  if (::symlink("usr/lib", "lib") != 0 || ::symlink("usr/lib64", "lib64") != 0) { return "link the libraries"; }
  if (::mkdir("dev", 0755) != 0 || !MakeDevice("dev/null", kMemDevices, kNullMinor, 0666) ||
      !MakeDevice("dev/urandom", kMemDevices, kUrandomMinor, 0444)) {
    return "make devices";
  }
  if (plan.kvm && (!MakeDevice("dev/kvm", kMiscDevices, kKvmMinor, 0600) || ::chown("dev/kvm", plan.uid, plan.gid) != 0)) { return "make /dev/kvm"; }
  if (::mkdir("proc", 0555) != 0) { return "make /proc"; }
  if (::mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) { return "mount /proc"; }
  if (::mount(nullptr, ".", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, nullptr) != 0) { return "make the root read-only"; }
  // pivot_root(2), "pivot_root(".", ".")": the old root is stacked on the new one and then taken away.
  if (::syscall(SYS_pivot_root, ".", ".") != 0) { return "change the root"; }
  if (::umount2(".", MNT_DETACH) != 0) { return "leave the old root"; }
  if (::chdir("/") != 0) { return "enter the new root"; }

  if (::sethostname("vmm", 3) != 0) { return "set the host name"; }
  if (::syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr) < 0) { return "take a keyring of its own"; }

  // No privilege, and no way to get one back.
  for (unsigned long capability = 0; capability < kCapabilityEnd; ++capability) {
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL) { return "drop the capability bounding set"; }
  }
  // The system calls themselves: glibc's wrappers signal every thread of the process, and the other threads are the daemon's.
  if (::syscall(SYS_setgroups, 0, nullptr) != 0) { return "drop supplementary groups"; }
  if (::syscall(SYS_setresgid, plan.gid, plan.gid, plan.gid) != 0) { return "change the gid"; }
  if (::syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid) != 0) { return "change the uid"; }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[2] = {};
  if (::syscall(SYS_capset, &header, none) != 0) { return "drop capabilities"; }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) { return "set no_new_privs"; }
  return nullptr;
}

}  // namespace forkd::vmm
