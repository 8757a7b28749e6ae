// Folders and small files of cgroupfs, and what both drivers do alike with the processes of a group.
#ifndef FORKD_CGROUP_GROUP_FILES_H_
#define FORKD_CGROUP_GROUP_FILES_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::cgroup {

// Paths of leaves and instances: parts of [A-Za-z0-9_.-] that do not begin with a dot. INVALID_ARGUMENT names `field`.
absl::Status CheckLeafPath(absl::string_view path, absl::string_view field);

bool IsDirectory(const std::string& path);
absl::Status MakeDirectories(const std::string& base, absl::string_view below);
// OK if absent. FAILED_PRECONDITION SANDBOX_BUSY while a process or a child group is in it.
absl::Status RemoveGroup(const std::string& path);
std::vector<std::string> ChildGroups(const std::string& path);

absl::StatusOr<std::string> ReadFile(const std::string& path);
// Empty if it cannot be read: for numbers that a kernel may lack.
std::string ReadFileOrEmpty(const std::string& path);
// One write(2), as cgroupfs wants it.
absl::Status WriteFile(const std::string& path, absl::string_view value);

// The pids that `procs_file` names now.
absl::StatusOr<std::vector<pid_t>> ReadProcesses(const std::string& procs_file);
// SIGKILL to each of `pids` by pidfd. Those already gone are no error.
absl::Status SignalKill(const std::vector<pid_t>& pids);

}  // namespace forkd::cgroup

#endif  // FORKD_CGROUP_GROUP_FILES_H_
