// cgroup v1: each controller is a hierarchy of its own, so a leaf is a folder in each of them.
#ifndef FORKD_CGROUP_CGROUP_V1_H_
#define FORKD_CGROUP_CGROUP_V1_H_

#include <string>
#include <utility>
#include <vector>

#include "cgroup/cgroup_tree.h"

namespace forkd::cgroup {

class CgroupV1 : public CgroupTree {
 public:
  // `controllers`: (name, mount point) of those that exist, of memory, cpu, cpuacct, pids, blkio, freezer. Two may share a mount point.
  CgroupV1(std::vector<std::pair<std::string, std::string>> controllers, std::string parent);
  // What `mount_root` offers; empty if memory, cpu or pids is missing.
  static std::vector<std::pair<std::string, std::string>> Probe(const std::string& mount_root);

  Version version() const override { return Version::kV1; }
  absl::Status Create(absl::string_view path, const Quota& quota) override;
  absl::Status Apply(absl::string_view path, const Quota& quota) override;
  absl::Status AddProcess(absl::string_view path, pid_t pid) override;
  absl::StatusOr<std::vector<UniqueFd>> OpenForJoining(absl::string_view path) override;
  absl::StatusOr<Usage> ReadUsage(absl::string_view path) override;
  absl::StatusOr<std::vector<pid_t>> Processes(absl::string_view path) override;
  absl::Status SetFrozen(absl::string_view path, bool frozen) override;
  absl::Status KillAll(absl::string_view path, Deadline deadline) override;
  absl::Status Remove(absl::string_view path) override;
  absl::StatusOr<std::vector<std::string>> ListLeaves(absl::string_view instance) override;

 private:
  // Empty if this host lacks the controller.
  std::string GroupOf(absl::string_view controller, absl::string_view path) const;
  std::vector<std::string> GroupsOf(absl::string_view path) const;

  std::vector<std::pair<std::string, std::string>> controllers_;
  std::string parent_;
};

}  // namespace forkd::cgroup

#endif  // FORKD_CGROUP_CGROUP_V1_H_
