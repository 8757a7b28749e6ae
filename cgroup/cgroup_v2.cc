#include "cgroup/cgroup_v2.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/reasons.h"
#include "base/status_macros.h"
#include "base/undo.h"
#include "cgroup/group_files.h"
#include "cgroup/quota_writes.h"

namespace forkd::cgroup {
namespace {

std::set<std::string> Controllers(const std::string& group) {
  const std::string text = ReadFileOrEmpty(group + "/cgroup.controllers");
  return absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
}

}  // namespace

CgroupV2::CgroupV2(std::string mount, std::string parent) : mount_(std::move(mount)), parent_(std::move(parent)) {}

std::string CgroupV2::Probe(const std::string& mount_root) {
  for (const std::string& mount : {mount_root, mount_root + "/unified"}) {
    const std::set<std::string> controllers = Controllers(mount);
    if (controllers.contains("memory") && controllers.contains("cpu") && controllers.contains("pids")) { return mount; }
  }
  return {};
}

std::string CgroupV2::GroupOf(absl::string_view path) const { return absl::StrCat(mount_, "/", parent_, "/", path); }

absl::StatusOr<std::string> CgroupV2::ExistingGroup(absl::string_view path) const {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  std::string group = GroupOf(path);
  if (!IsDirectory(group)) {
    return Error(absl::StatusCode::kNotFound, Reason::kSandboxUnknown, absl::StrCat("there is no control group ", Quoted(path)));
  }
  return group;
}

absl::Status CgroupV2::Create(absl::string_view path, const Quota& quota) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  FORKD_RETURN_IF_ERROR(ValidateQuota(quota));
  const absl::string_view above = path.substr(0, path.rfind('/') == absl::string_view::npos ? 0 : path.rfind('/'));
  const std::string below_mount = absl::StrCat(parent_, "/", above);
  FORKD_RETURN_IF_ERROR(MakeDirectories(mount_, below_mount));
  // From the mount point down: a group may only hand on what it was given.
  std::string group = mount_;
  std::vector<std::string> parts = absl::StrSplit(below_mount, '/', absl::SkipEmpty());
  for (std::size_t depth = 0;; ++depth) {
    const std::set<std::string> available = Controllers(group);
    const std::set<std::string> enabled = absl::StrSplit(ReadFileOrEmpty(group + "/cgroup.subtree_control"), absl::ByAnyChar(" \n"), absl::SkipEmpty());
    for (const char* controller : {"memory", "cpu", "pids", "io"}) {
      if (available.contains(controller) && !enabled.contains(controller)) {
        FORKD_RETURN_IF_ERROR(WriteFile(group + "/cgroup.subtree_control", absl::StrCat("+", controller)));
      }
    }
    if (depth == parts.size()) { break; }
    absl::StrAppend(&group, "/", parts[depth]);
  }
  const std::string leaf = GroupOf(path);
  if (::mkdir(leaf.c_str(), 0755) != 0) {
    if (errno == EEXIST) {
      return Error(absl::StatusCode::kAlreadyExists, Reason::kSandboxBusy, absl::StrCat("control group ", Quoted(leaf), " exists already"));
    }
    return ErrnoError(errno, absl::StrCat("mkdir ", Quoted(leaf)));
  }
  Undo undo;
  undo.Add([leaf] { RemoveGroup(leaf).IgnoreError(); });
  FORKD_RETURN_IF_ERROR(Apply(path, quota));
  undo.Commit();
  return absl::OkStatus();
}

absl::Status CgroupV2::Apply(absl::string_view path, const Quota& quota) {
  FORKD_RETURN_IF_ERROR(ValidateQuota(quota));
  FORKD_ASSIGN_OR_RETURN(const std::string group, ExistingGroup(path));
  // v2 takes a memory limit below what is in use and then kills until it fits; v1 refuses. The same answer from both: refuse.
  if (quota.memory_max_bytes) {
    const std::int64_t used = ParseNumber(ReadFileOrEmpty(group + "/memory.current")).value_or(0);
    if (used > *quota.memory_max_bytes) {
      return Error(absl::StatusCode::kFailedPrecondition, Reason::kLimitReached,
                   absl::StrCat("control group ", Quoted(path), " uses ", used, " bytes, more than the new limit of ", *quota.memory_max_bytes));
    }
  }
  for (const Write& write : V2Writes(quota)) {
    const std::string file = absl::StrCat(group, "/", write.file);
    if (::access(file.c_str(), F_OK) != 0) {
      // A kernel without swap has no memory.swap.max, and then there is nothing to switch off.
      if (write.file == "memory.swap.max") { continue; }
      return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
                   absl::StrCat("this host's cgroup v2 has no ", write.file, ", so the limit cannot be applied; leave it out"))
          .Meta("controller", write.controller)
          .Meta("file", write.file);
    }
    FORKD_RETURN_IF_ERROR(WriteFile(file, write.value));
  }
  return absl::OkStatus();
}

absl::Status CgroupV2::AddProcess(absl::string_view path, pid_t pid) {
  FORKD_ASSIGN_OR_RETURN(const std::string group, ExistingGroup(path));
  return WriteFile(group + "/cgroup.procs", absl::StrCat(pid));
}

absl::StatusOr<std::vector<UniqueFd>> CgroupV2::OpenForJoining(absl::string_view path) {
  FORKD_ASSIGN_OR_RETURN(const std::string group, ExistingGroup(path));
  std::vector<UniqueFd> fds;
  fds.emplace_back(::open(absl::StrCat(group, "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  if (!fds.back()) { return ErrnoError(errno, absl::StrCat("open ", Quoted(group + "/cgroup.procs"))); }
  return fds;
}

absl::StatusOr<Usage> CgroupV2::ReadUsage(absl::string_view path) {
  FORKD_ASSIGN_OR_RETURN(const std::string group, ExistingGroup(path));
  const auto read = [&group](absl::string_view file) { return ReadFileOrEmpty(absl::StrCat(group, "/", file)); };
  Usage usage;
  usage.memory_bytes = ParseNumber(read("memory.current"));
  usage.memory_peak_bytes = ParseNumber(read("memory.peak"));  // Linux 5.19
  usage.oom_kill_count = ParseKeyed(read("memory.events"), "oom_kill");
  const std::string cpu = read("cpu.stat");
  usage.cpu_time_us = ParseKeyed(cpu, "usage_usec");
  usage.cpu_throttled_us = ParseKeyed(cpu, "throttled_usec");
  usage.cpu_throttled_count = ParseKeyed(cpu, "nr_throttled");
  usage.pid_count = ParseNumber(read("pids.current"));
  usage.pids_refused_count = ParseKeyed(read("pids.events"), "max");
  if (const absl::StatusOr<std::string> text = ReadFile(group + "/io.stat"); text.ok()) {
    const V2Io io = ParseV2Io(*text);
    usage.io_read_bytes = io.bytes.read;
    usage.io_write_bytes = io.bytes.write;
    usage.io_read_operation_count = io.operations.read;
    usage.io_write_operation_count = io.operations.write;
  }
  return usage;
}

absl::StatusOr<std::vector<pid_t>> CgroupV2::Processes(absl::string_view path) {
  FORKD_ASSIGN_OR_RETURN(const std::string group, ExistingGroup(path));
  return ReadProcesses(group + "/cgroup.procs");
}

absl::Status CgroupV2::SetFrozen(absl::string_view path, bool frozen) {
  FORKD_ASSIGN_OR_RETURN(const std::string group, ExistingGroup(path));
  return WriteFile(group + "/cgroup.freeze", frozen ? "1" : "0");
}

absl::Status CgroupV2::KillAll(absl::string_view path, Deadline deadline) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  const std::string group = GroupOf(path);
  if (!IsDirectory(group)) { return absl::OkStatus(); }
  while (true) {
    // cgroup.kill (Linux 5.14) reaches forks under way and frozen processes too; before it, one by one.
    if (::access((group + "/cgroup.kill").c_str(), F_OK) == 0) {
      FORKD_RETURN_IF_ERROR(WriteFile(group + "/cgroup.kill", "1"));
    } else {
      FORKD_RETURN_IF_ERROR(SetFrozen(path, false));
      FORKD_ASSIGN_OR_RETURN(const std::vector<pid_t> pids, ReadProcesses(group + "/cgroup.procs"));
      FORKD_RETURN_IF_ERROR(SignalKill(pids));
    }
    if (ParseKeyed(ReadFileOrEmpty(group + "/cgroup.events"), "populated").value_or(0) == 0) { return absl::OkStatus(); }
    if (deadline.Expired()) {
      return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline,
                   absl::StrCat("control group ", Quoted(path), " still holds processes after SIGKILL"));
    }
    ::poll(nullptr, 0, 1);
  }
}

absl::Status CgroupV2::Remove(absl::string_view path) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  return RemoveGroup(GroupOf(path));
}

absl::StatusOr<std::vector<std::string>> CgroupV2::ListLeaves(absl::string_view instance) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(instance, "instance"));
  std::vector<std::string> leaves;
  for (const std::string& name : ChildGroups(GroupOf(instance))) { leaves.push_back(absl::StrCat(instance, "/", name)); }
  return leaves;
}

}  // namespace forkd::cgroup
