// cgroup v2: one hierarchy; every group above the leaves hands the controllers down.
#ifndef FORKD_CGROUP_CGROUP_V2_H_
#define FORKD_CGROUP_CGROUP_V2_H_

#include <string>
#include <vector>

#include "cgroup/cgroup_tree.h"

namespace forkd::cgroup {

class CgroupV2 : public CgroupTree {
 public:
  CgroupV2(std::string mount, std::string parent);
  // The mount point with memory, cpu and pids available, or empty.
  static std::string Probe(const std::string& mount_root);

  Version version() const override { return Version::kV2; }
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
  std::string GroupOf(absl::string_view path) const;
  // Checks the path and that the leaf is there.
  absl::StatusOr<std::string> ExistingGroup(absl::string_view path) const;

  std::string mount_;
  std::string parent_;
};

}  // namespace forkd::cgroup

#endif  // FORKD_CGROUP_CGROUP_V2_H_
