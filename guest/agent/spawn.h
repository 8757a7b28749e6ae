// Starting programs: a clean child in a session of its own, or a precise reason why not.
#ifndef FORKD_GUEST_AGENT_SPAWN_H_
#define FORKD_GUEST_AGENT_SPAWN_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace forkd::agent {

struct User {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
  std::string name = "root";
  std::string home = "/root";
  std::string shell = "/bin/sh";
};

// By name or decimal uid, from /etc/passwd and /etc/group. Empty means root. A number that is not listed is accepted, a name that is not is nullopt.
std::optional<User> FindUser(const std::string& name_or_uid);

// The default environment with `overlay` ("NAME=value") laid over it.
std::vector<std::string> MakeEnvironment(const User& user, bool tty, const std::vector<std::string>& overlay);

struct SpawnSpec {
  std::vector<std::string> argv;
  std::vector<std::string> env;
  User user;
  // Empty: the user's home, or "/".
  std::string cwd;
  // Become the child's 0, 1, 2. Borrowed.
  int stdio[3] = {-1, -1, -1};
  // Become the child's descriptors 3 and up. Borrowed.
  std::vector<int> extra_fds;
  // stdio[0] is a terminal that becomes the controlling one.
  bool controlling_tty = false;
};

struct SpawnFailure {
  std::string reason;  // See ExecError in agent.proto.
  std::string message;
};

// Once, after the signal dispositions of this process are as they will stay: what every start needs, so that a clone finds it done.
void PrepareToSpawn();

// The child's pid, or why there is none. The child leads a session and a process group of its own, has default signal dispositions, an empty mask, and
// no descriptors but those named. The agent waits for the child's execve, but shares its memory with it meanwhile: no page is copied.
std::pair<pid_t, SpawnFailure> Spawn(const SpawnSpec& spec);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_SPAWN_H_
