#include "cgroup/cgroup_v1.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/reasons.h"
#include "base/status_macros.h"
#include "base/undo.h"
#include "cgroup/group_files.h"
#include "cgroup/quota_writes.h"

namespace forkd::cgroup {
namespace {

constexpr absl::string_view kControllers[] = {"memory", "cpu", "cpuacct", "pids", "blkio", "freezer"};

absl::Status UnknownLeaf(absl::string_view path) {
  return Error(absl::StatusCode::kNotFound, Reason::kSandboxUnknown, absl::StrCat("there is no control group ", Quoted(path)));
}

}  // namespace

CgroupV1::CgroupV1(std::vector<std::pair<std::string, std::string>> controllers, std::string parent)
    : controllers_(std::move(controllers)), parent_(std::move(parent)) {}

std::vector<std::pair<std::string, std::string>> CgroupV1::Probe(const std::string& mount_root) {
  std::vector<std::pair<std::string, std::string>> found;
  std::set<std::string> names;
  for (absl::string_view controller : kControllers) {
    const std::string mount = absl::StrCat(mount_root, "/", controller);
    // A v1 hierarchy has `tasks`; a v2 one, or an empty folder, has not.
    if (::access(absl::StrCat(mount, "/tasks").c_str(), F_OK) != 0) { continue; }
    found.emplace_back(controller, mount);
    names.insert(std::string(controller));
  }
  if (!names.contains("memory") || !names.contains("cpu") || !names.contains("pids")) { return {}; }
  return found;
}

std::string CgroupV1::GroupOf(absl::string_view controller, absl::string_view path) const {
  for (const auto& [name, mount] : controllers_) {
    if (name == controller) { return absl::StrCat(mount, "/", parent_, "/", path); }
  }
  return {};
}

std::vector<std::string> CgroupV1::GroupsOf(absl::string_view path) const {
  std::vector<std::string> groups;
  for (const auto& [name, mount] : controllers_) { groups.push_back(absl::StrCat(mount, "/", parent_, "/", path)); }
  return groups;
}

absl::Status CgroupV1::Create(absl::string_view path, const Quota& quota) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  FORKD_RETURN_IF_ERROR(ValidateQuota(quota));
  Undo undo;
  bool first = true;
  const absl::string_view above = path.substr(0, path.rfind('/') == absl::string_view::npos ? 0 : path.rfind('/'));
  for (const auto& [name, mount] : controllers_) {
    const std::string group = absl::StrCat(mount, "/", parent_, "/", path);
    // cpu and cpuacct may be one mount under two names.
    const bool made_through_twin = !first && IsDirectory(group) && name == "cpuacct";
    first = false;
    if (made_through_twin) { continue; }
    FORKD_RETURN_IF_ERROR(MakeDirectories(mount, absl::StrCat(parent_, "/", above)));
    if (::mkdir(group.c_str(), 0755) != 0) {
      if (errno == EEXIST) {
        return Error(absl::StatusCode::kAlreadyExists, Reason::kSandboxBusy, absl::StrCat("control group ", Quoted(group), " exists already"));
      }
      return ErrnoError(errno, absl::StrCat("mkdir ", Quoted(group)));
    }
    undo.Add([group] { RemoveGroup(group).IgnoreError(); });
  }
  FORKD_RETURN_IF_ERROR(Apply(path, quota));
  undo.Commit();
  return absl::OkStatus();
}

absl::Status CgroupV1::Apply(absl::string_view path, const Quota& quota) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  FORKD_RETURN_IF_ERROR(ValidateQuota(quota));
  const std::string memory = GroupOf("memory", path);
  if (!IsDirectory(memory)) { return UnknownLeaf(path); }
  const std::int64_t current = ParseNumber(ReadFileOrEmpty(memory + "/memory.limit_in_bytes")).value_or(0);
  for (const Write& write : V1Writes(quota, current)) {
    const std::string group = GroupOf(write.controller, path);
    const std::string file = absl::StrCat(group, "/", write.file);
    if (group.empty() || ::access(file.c_str(), F_OK) != 0) {
      return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
                   absl::StrCat("this host's cgroup v1 has no ", write.file, ", so the limit cannot be applied; leave it out"))
          .Meta("controller", write.controller)
          .Meta("file", write.file);
    }
    FORKD_RETURN_IF_ERROR(WriteFile(file, write.value));
  }
  return absl::OkStatus();
}

absl::Status CgroupV1::AddProcess(absl::string_view path, pid_t pid) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  for (const std::string& group : GroupsOf(path)) {
    if (!IsDirectory(group)) { return UnknownLeaf(path); }
    FORKD_RETURN_IF_ERROR(WriteFile(group + "/cgroup.procs", absl::StrCat(pid)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<UniqueFd>> CgroupV1::OpenForJoining(absl::string_view path) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  std::vector<UniqueFd> fds;
  for (const std::string& group : GroupsOf(path)) {
    UniqueFd fd(::open(absl::StrCat(group, "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd) { return errno == ENOENT ? UnknownLeaf(path) : ErrnoError(errno, absl::StrCat("open ", Quoted(group + "/cgroup.procs"))); }
    fds.push_back(std::move(fd));
  }
  return fds;
}

absl::StatusOr<Usage> CgroupV1::ReadUsage(absl::string_view path) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  if (!IsDirectory(GroupOf("memory", path))) { return UnknownLeaf(path); }
  const auto read = [&](absl::string_view controller, absl::string_view file) {
    const std::string group = GroupOf(controller, path);
    return group.empty() ? std::string() : ReadFileOrEmpty(absl::StrCat(group, "/", file));
  };
  Usage usage;
  usage.memory_bytes = ParseNumber(read("memory", "memory.usage_in_bytes"));
  usage.memory_peak_bytes = ParseNumber(read("memory", "memory.max_usage_in_bytes"));
  usage.oom_kill_count = ParseKeyed(read("memory", "memory.oom_control"), "oom_kill");
  if (const std::optional<std::int64_t> ns = ParseNumber(read("cpuacct", "cpuacct.usage"))) { usage.cpu_time_us = *ns / 1000; }
  const std::string cpu_stat = read("cpu", "cpu.stat");
  if (const std::optional<std::int64_t> ns = ParseKeyed(cpu_stat, "throttled_time")) { usage.cpu_throttled_us = *ns / 1000; }
  usage.cpu_throttled_count = ParseKeyed(cpu_stat, "nr_throttled");
  usage.pid_count = ParseNumber(read("pids", "pids.current"));
  usage.pids_refused_count = ParseKeyed(read("pids", "pids.events"), "max");
  const std::string io_bytes = read("blkio", "blkio.throttle.io_service_bytes");
  const std::string io_operations = read("blkio", "blkio.throttle.io_serviced");
  // An empty file: no io yet. No file: not counted here.
  if (!GroupOf("blkio", path).empty()) {
    usage.io_read_bytes = ParseV1Io(io_bytes).read;
    usage.io_write_bytes = ParseV1Io(io_bytes).write;
    usage.io_read_operation_count = ParseV1Io(io_operations).read;
    usage.io_write_operation_count = ParseV1Io(io_operations).write;
  }
  return usage;
}

absl::StatusOr<std::vector<pid_t>> CgroupV1::Processes(absl::string_view path) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  // A process may have been added to some hierarchies alone, if the daemon died in AddProcess: any of them counts.
  std::set<pid_t> all;
  bool found = false;
  for (const std::string& group : GroupsOf(path)) {
    if (!IsDirectory(group)) { continue; }
    found = true;
    FORKD_ASSIGN_OR_RETURN(const std::vector<pid_t> pids, ReadProcesses(group + "/cgroup.procs"));
    all.insert(pids.begin(), pids.end());
  }
  if (!found) { return UnknownLeaf(path); }
  return std::vector<pid_t>(all.begin(), all.end());
}

absl::Status CgroupV1::SetFrozen(absl::string_view path, bool frozen) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  const std::string group = GroupOf("freezer", path);
  if (group.empty()) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing, "this host's cgroup v1 has no freezer");
  }
  if (!IsDirectory(group)) { return UnknownLeaf(path); }
  return WriteFile(group + "/freezer.state", frozen ? "FROZEN" : "THAWED");
}

absl::Status CgroupV1::KillAll(absl::string_view path, Deadline deadline) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  // v1 has no cgroup.kill: kill what is listed until nothing is. A fork bomb cannot outrun this for ever, as pids_max bounds it and each round
  // kills all parents; nobody may stay frozen, since a frozen process does not die before it is thawed.
  const std::string freezer = GroupOf("freezer", path);
  if (!freezer.empty() && IsDirectory(freezer)) { FORKD_RETURN_IF_ERROR(SetFrozen(path, false)); }
  while (true) {
    const absl::StatusOr<std::vector<pid_t>> pids = Processes(path);
    if (absl::IsNotFound(pids.status())) { return absl::OkStatus(); }
    FORKD_RETURN_IF_ERROR(pids.status());
    if (pids->empty()) { return absl::OkStatus(); }
    FORKD_RETURN_IF_ERROR(SignalKill(*pids));
    if (deadline.Expired()) {
      return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline,
                   absl::StrCat("control group ", Quoted(path), " still holds ", pids->size(), " processes after SIGKILL"));
    }
    // v1 announces emptiness only by running a program (release_agent): look again shortly.
    ::poll(nullptr, 0, 1);
  }
}

absl::Status CgroupV1::Remove(absl::string_view path) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(path, "path"));
  // First all are looked at: a leaf that cannot go keeps its limits in every hierarchy.
  const absl::StatusOr<std::vector<pid_t>> pids = Processes(path);
  if (absl::IsNotFound(pids.status())) { return absl::OkStatus(); }
  FORKD_RETURN_IF_ERROR(pids.status());
  if (!pids->empty()) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSandboxBusy,
                 absl::StrCat("control group ", Quoted(path), " still holds ", pids->size(), " processes; kill them first"));
  }
  for (const std::string& group : GroupsOf(path)) {
    // The last process may be dying still, out of cgroup.procs but not yet out of the group.
    absl::Status status;
    for (int attempt = 0; attempt < 50; ++attempt) {
      status = RemoveGroup(group);
      if (ReasonOf(status) != ReasonName(Reason::kSandboxBusy)) { break; }
      ::poll(nullptr, 0, 2);
    }
    FORKD_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> CgroupV1::ListLeaves(absl::string_view instance) {
  FORKD_RETURN_IF_ERROR(CheckLeafPath(instance, "instance"));
  std::set<std::string> leaves;
  for (const std::string& group : GroupsOf(instance)) {
    for (const std::string& name : ChildGroups(group)) { leaves.insert(absl::StrCat(instance, "/", name)); }
  }
  return std::vector<std::string>(leaves.begin(), leaves.end());
}

}  // namespace forkd::cgroup
