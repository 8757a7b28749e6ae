// The part of the host's control groups that belongs to one daemon, and its leaves: one per sandbox, one per root image.
//
// A leaf's path is `<instance>/<name>` below the tree's parent (`forkd` by default), for instance `4f2a…/sb-66a1-0001`. The instance keeps
// two daemons on one host apart. Every call blocks (files of cgroupfs, microseconds; KillAll up to its deadline) and may run on any thread.
// Needs root, or a delegated subtree under cgroup v2.
#ifndef FORKD_CGROUP_CGROUP_TREE_H_
#define FORKD_CGROUP_CGROUP_TREE_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/deadline.h"
#include "base/unique_fd.h"
#include "cgroup/quota.h"

namespace forkd::cgroup {

enum class Version { kV1, kV2 };

class CgroupTree {
 public:
  virtual ~CgroupTree() = default;

  virtual Version version() const = 0;

  // The leaf's groups in every hierarchy, with `quota`. All or nothing: what cannot be applied fails the call, and no group remains.
  // INVALID_ARGUMENT: the quota or the path; ALREADY_EXISTS: such a leaf exists; FAILED_PRECONDITION HOST_MISSING: the host has no
  // controller for what was asked (the message names it).
  virtual absl::Status Create(absl::string_view path, const Quota& quota) = 0;
  // Changes the limits that `quota` names; others stay. FAILED_PRECONDITION HOST_MISSING as above; FAILED_PRECONDITION LIMIT_REACHED where
  // more memory is in use than the new limit. NOT_FOUND: no such leaf. A failure in between leaves the limits written so far.
  virtual absl::Status Apply(absl::string_view path, const Quota& quota) = 0;
  // Moves the process with all its threads; what it allocated before stays charged where it was. NOT_FOUND: no such process or leaf.
  virtual absl::Status AddProcess(absl::string_view path, pid_t pid) = 0;
  // Descriptors, one per hierarchy, into which a process that is about to become a VMM writes "0" to join before its exec: then not a byte
  // of it is charged elsewhere. For launchers: after fork, write(2) alone is needed.
  virtual absl::StatusOr<std::vector<UniqueFd>> OpenForJoining(absl::string_view path) = 0;
  virtual absl::StatusOr<Usage> ReadUsage(absl::string_view path) = 0;
  virtual absl::StatusOr<std::vector<pid_t>> Processes(absl::string_view path) = 0;
  // Stops or continues everything in the leaf. Asynchronous: the kernel may need a moment.
  virtual absl::Status SetFrozen(absl::string_view path, bool frozen) = 0;
  // SIGKILL to everything in the leaf, forks under way included, until it is empty. DEADLINE_EXCEEDED DEADLINE if something remains. OK if absent.
  virtual absl::Status KillAll(absl::string_view path, Deadline deadline) = 0;
  // Removes the leaf from every hierarchy. Idempotent: OK if (partly) absent. FAILED_PRECONDITION SANDBOX_BUSY while a process is in it.
  virtual absl::Status Remove(absl::string_view path) = 0;
  // Leaves of `instance`, from all hierarchies united, sorted, as paths (`<instance>/<name>`).
  virtual absl::StatusOr<std::vector<std::string>> ListLeaves(absl::string_view instance) = 0;
};

struct TreeOptions {
  // Where the host mounts its hierarchies: v1 as `<mount_root>/memory` and so on, v2 as `<mount_root>` or `<mount_root>/unified`.
  std::string mount_root = "/sys/fs/cgroup";
  // The group that holds everything of forkd; made at need. May have several parts ("system.slice/forkd.service/sandboxes").
  std::string parent = "forkd";
};

// v2 where it offers the controllers memory, cpu and pids, else v1 where it does. FAILED_PRECONDITION HOST_MISSING says what was found.
absl::StatusOr<std::unique_ptr<CgroupTree>> OpenCgroupTree(const TreeOptions& options = {});

// After a crash, or at the start: kills and removes every leaf of `instance` that `keep` (paths) does not name; the instance's own group goes
// with its last leaf. Goes on after a failure and gives the first. The undo of Create and this are the same two calls: KillAll, Remove.
absl::Status SweepLeaves(CgroupTree& tree, absl::string_view instance, const std::vector<std::string>& keep, Deadline deadline);

// Owns one leaf. Move-only. The destructor removes the leaf if it is empty and leaves it to the next sweep if not: it neither kills nor waits.
class CgroupLeaf {
 public:
  // `tree` is borrowed and outlives the leaf.
  static absl::StatusOr<CgroupLeaf> Create(CgroupTree* tree, std::string path, const Quota& quota);
  // Takes over a leaf that an earlier daemon made. NOT_FOUND if there is none.
  static absl::StatusOr<CgroupLeaf> Adopt(CgroupTree* tree, std::string path);

  CgroupLeaf() = default;
  CgroupLeaf(CgroupLeaf&& other) noexcept;
  CgroupLeaf& operator=(CgroupLeaf&& other) noexcept;
  CgroupLeaf(const CgroupLeaf&) = delete;
  CgroupLeaf& operator=(const CgroupLeaf&) = delete;
  ~CgroupLeaf();

  bool valid() const { return tree_ != nullptr; }
  const std::string& path() const { return path_; }

  absl::Status Apply(const Quota& quota) { return tree_->Apply(path_, quota); }
  absl::Status AddProcess(pid_t pid) { return tree_->AddProcess(path_, pid); }
  absl::StatusOr<std::vector<UniqueFd>> OpenForJoining() { return tree_->OpenForJoining(path_); }
  absl::StatusOr<Usage> ReadUsage() { return tree_->ReadUsage(path_); }
  absl::Status Freeze() { return tree_->SetFrozen(path_, true); }
  absl::Status Thaw() { return tree_->SetFrozen(path_, false); }
  absl::Status KillAll(Deadline deadline) { return tree_->KillAll(path_, deadline); }

  // Removes the leaf. On an error the object still owns it.
  absl::Status Remove();
  // Gives the leaf up without touching it: it outlives this daemon (a sandbox that lives on over a restart).
  void Keep();

 private:
  CgroupLeaf(CgroupTree* tree, std::string path) : tree_(tree), path_(std::move(path)) {}
  CgroupTree* tree_ = nullptr;
  std::string path_;
};

}  // namespace forkd::cgroup

#endif  // FORKD_CGROUP_CGROUP_TREE_H_
