#include "cgroup/cgroup_tree.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/reasons.h"
#include "base/status_macros.h"
#include "cgroup/cgroup_v1.h"
#include "cgroup/cgroup_v2.h"
#include "cgroup/group_files.h"

namespace forkd::cgroup {

absl::StatusOr<std::unique_ptr<CgroupTree>> OpenCgroupTree(const TreeOptions& options) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(options.parent, "parent"));
  if (std::string mount = CgroupV2::Probe(options.mount_root); !mount.empty()) {
    return std::make_unique<CgroupV2>(std::move(mount), options.parent);
  }
  if (std::vector<std::pair<std::string, std::string>> controllers = CgroupV1::Probe(options.mount_root); !controllers.empty()) {
    return std::make_unique<CgroupV1>(std::move(controllers), options.parent);
  }
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
               absl::StrCat("neither cgroup v2 nor v1 at ", Quoted(options.mount_root), " offers the controllers memory, cpu and pids"));
}

absl::Status SweepLeaves(CgroupTree& tree, absl::string_view instance, const std::vector<std::string>& keep, Deadline deadline) {
  FORKD_ASSIGN_OR_RETURN(const std::vector<std::string> leaves, tree.ListLeaves(instance));
  absl::Status first;
  bool all_gone = true;
  for (const std::string& leaf : leaves) {
    if (std::find(keep.begin(), keep.end(), leaf) != keep.end()) {
      all_gone = false;
      continue;
    }
    absl::Status status = tree.KillAll(leaf, deadline);
    if (status.ok()) { status = tree.Remove(leaf); }
    if (!status.ok()) { all_gone = false; }
    first.Update(status);
  }
  if (all_gone) { first.Update(tree.Remove(instance)); }
  return first;
}

absl::StatusOr<CgroupLeaf> CgroupLeaf::Create(CgroupTree* tree, std::string path, const Quota& quota) {
  FORKD_RETURN_IF_ERROR(tree->Create(path, quota));
  return CgroupLeaf(tree, std::move(path));
}

absl::StatusOr<CgroupLeaf> CgroupLeaf::Adopt(CgroupTree* tree, std::string path) {
  FORKD_RETURN_IF_ERROR(tree->Processes(path).status());
  return CgroupLeaf(tree, std::move(path));
}

CgroupLeaf::CgroupLeaf(CgroupLeaf&& other) noexcept : tree_(std::exchange(other.tree_, nullptr)), path_(std::move(other.path_)) {}

CgroupLeaf& CgroupLeaf::operator=(CgroupLeaf&& other) noexcept {
  if (this != &other) {
    if (tree_ != nullptr) { Remove().IgnoreError(); }
    tree_ = std::exchange(other.tree_, nullptr);
    path_ = std::move(other.path_);
  }
  return *this;
}

CgroupLeaf::~CgroupLeaf() {
  // A leaf with processes in it stays for the next sweep, which kills; that is not a destructor's work.
  if (tree_ != nullptr) { Remove().IgnoreError(); }
}

absl::Status CgroupLeaf::Remove() {
  if (tree_ == nullptr) { return absl::OkStatus(); }
  FORKD_RETURN_IF_ERROR(tree_->Remove(path_));
  tree_ = nullptr;
  return absl::OkStatus();
}

void CgroupLeaf::Keep() { tree_ = nullptr; }

}  // namespace forkd::cgroup
