// The daemon's state folder and the lock that makes one daemon its owner.
#ifndef FORKD_ENGINE_REGISTRY_STATE_DIR_H_
#define FORKD_ENGINE_REGISTRY_STATE_DIR_H_

#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace forkd::engine {

// An open state folder. Movable.
class StateDir {
 public:
  // Opens `path`, an absolute path; makes it (0700) and missing parents (0755). FAILED_PRECONDITION STATE_DIR_UNSAFE: owned by another user,
  // writable by group or others, or the last part is a symlink or no folder; says how to mend it. PERMISSION_DENIED as usual. Blocking.
  static absl::StatusOr<StateDir> OpenBlocking(const std::string& path);

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

 private:
  StateDir(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
};

// Holds `<state-dir>/lock` (flock) for as long as it lives, and the kernel lets go when the process ends, however it ends. The descriptor is
// close-on-exec: a VMM never keeps its dead daemon's lock.
class StateDirLock {
 public:
  // FAILED_PRECONDITION STATE_DIR_IN_USE naming the holder's pid. Does not wait.
  static absl::StatusOr<StateDirLock> TakeBlocking(const StateDir& dir);

 private:
  explicit StateDirLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_STATE_DIR_H_
