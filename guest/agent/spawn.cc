#include "guest/agent/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "guest/agent/console.h"
#include "guest/agent/small_file.h"

namespace forkd::agent {
namespace {

constexpr const char* kDefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr const char* kPasswdPath = "/etc/passwd";
constexpr const char* kGroupPath = "/etc/group";
constexpr std::size_t kChildStackBytes = 64 * 1024;

std::vector<std::string> Split(const std::string& line, char separator) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  while (true) {
    const std::size_t end = line.find(separator, start);
    parts.push_back(line.substr(start, end - start));
    if (end == std::string::npos) { return parts; }
    start = end + 1;
  }
}

std::optional<uint32_t> ParseId(const std::string& text) {
  if (text.empty() || text.size() > 10 || text.find_first_not_of("0123456789") != std::string::npos) { return std::nullopt; }
  const unsigned long long value = strtoull(text.c_str(), nullptr, 10);
  // The largest number means "no change" to setuid's relatives.
  if (value >= 0xffffffffull) { return std::nullopt; }
  return static_cast<uint32_t>(value);
}

// What rt_sigaction(2) takes on x86-64, as the kernel has it.
struct KernelSigaction {
  void (*handler)(int) = SIG_DFL;
  unsigned long flags = 0;
  void (*restorer)() = nullptr;
  unsigned long mask = 0;
};

enum class Stage : int { kNone, kStdio, kTerminal, kUser, kCwd, kExec };

struct Child {
  const SpawnSpec* spec;
  char* const* argv;
  char* const* env;
  const std::vector<std::string>* candidates;
  const char* cwd;
  bool cwd_optional;
  const std::vector<int>* reset;
  Stage failed = Stage::kNone;
  int error = 0;
};

// Runs in the child, in the agent's memory, while the agent is stopped: system calls alone, no allocation.
int RunChild(void* argument) {
  auto* child = static_cast<Child*>(argument);
  const SpawnSpec& spec = *child->spec;
  const auto fail = [child](Stage stage) {
    child->error = errno;
    child->failed = stage;
    _exit(127);
  };
  // By system call, for glibc refuses to touch the two signals that it uses itself.
  const KernelSigaction defaults;
  for (int signal : *child->reset) { syscall(SYS_rt_sigaction, signal, &defaults, nullptr, sizeof defaults.mask); }
  setsid();
  umask(022);
  // The sources are all above the targets (main() sees to it), so the order does no harm. dup2 clears close-on-exec.
  for (int i = 0; i < 3; ++i) {
    if (dup2(spec.stdio[i], i) < 0) { fail(Stage::kStdio); }
  }
  int next = 3;
  for (int fd : spec.extra_fds) {
    if (dup2(fd, next++) < 0) { fail(Stage::kStdio); }
  }
  if (syscall(SYS_close_range, static_cast<unsigned>(next), ~0u, 0u) != 0 && errno != ENOSYS) { fail(Stage::kStdio); }
  if (spec.controlling_tty && ioctl(0, TIOCSCTTY, 0) != 0) { fail(Stage::kTerminal); }
  // Only what differs: tests run the agent without the privilege to set even what it already is. Raw system calls: glibc's would signal "all threads".
  const User& user = spec.user;
  if (geteuid() != user.uid || getegid() != user.gid || geteuid() == 0) {
    if (syscall(SYS_setgroups, user.groups.size(), user.groups.data()) != 0 && geteuid() == 0 && user.uid != 0) { fail(Stage::kUser); }
    if (syscall(SYS_setresgid, user.gid, user.gid, user.gid) != 0) { fail(Stage::kUser); }
    if (syscall(SYS_setresuid, user.uid, user.uid, user.uid) != 0) { fail(Stage::kUser); }
  }
  if (chdir(child->cwd) != 0) {
    if (!child->cwd_optional || chdir("/") != 0) { fail(Stage::kCwd); }
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  int error = ENOENT;
  for (const std::string& candidate : *child->candidates) {
    execve(candidate.c_str(), child->argv, child->env);
    // As execvp(3): go on past what is not there; a program that may not be run is remembered in case nothing better follows.
    if (errno == EACCES) {
      error = EACCES;
    } else if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE && errno != ENODEV) {
      error = errno;
      break;
    }
  }
  errno = error;
  fail(Stage::kExec);
  return 127;
}

SpawnFailure Explain(const SpawnSpec& spec, const Child& child) {
  const std::string text = ErrnoText(child.error);
  switch (child.failed) {
    case Stage::kUser: return {"START_FAILED", "become user " + spec.user.name + ": " + text};
    case Stage::kCwd: return {"CWD_UNUSABLE", std::string(child.cwd) + ": " + text};
    case Stage::kTerminal:
    case Stage::kStdio: return {"START_FAILED", "standard streams: " + text};
    default: break;
  }
  const std::string what = spec.argv[0] + ": ";
  switch (child.error) {
    case ENOENT:
      for (const std::string& candidate : *child.candidates) {
        if (access(candidate.c_str(), F_OK) == 0) { return {"NOT_FOUND", what + "the interpreter that it names does not exist"}; }
      }
      return {"NOT_FOUND", what + "no such program"};
    case EACCES: return {"NOT_EXECUTABLE", what + text};
    case ENOEXEC: return {"BAD_FORMAT", what + "neither an executable nor a script with #!"};
    case E2BIG: return {"ARGUMENTS_TOO_LONG", what + text};
    case ENOMEM:
    case EAGAIN:
    case EMFILE:
    case ENFILE: return {"OUT_OF_RESOURCES", what + text};
    default: return {"START_FAILED", what + text};
  }
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& text : strings) { pointers.push_back(const_cast<char*>(text.c_str())); }
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

namespace {

// Which version of a file it is.
struct Signature {
  dev_t device = 0;
  ino_t inode = 0;
  off_t size = 0;
  time_t seconds = 0;
  long nanoseconds = 0;
  bool operator==(const Signature&) const = default;
};

Signature SignatureOf(const char* path) {
  struct stat info {};
  if (stat(path, &info) != 0) { return {}; }
  return {info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

std::vector<std::string> Lines(const std::string& path) { return Split(ReadSmallFile(path), '\n'); }

std::optional<User> LookUpUser(const std::string& name_or_uid) {
  User user;
  const std::optional<uint32_t> number = ParseId(name_or_uid);
  if (number.has_value()) {
    user.uid = user.gid = *number;
    user.name = name_or_uid;
    user.home = "/";
  }
  bool found = false;
  for (const std::string& line : Lines(kPasswdPath)) {
    const std::vector<std::string> parts = Split(line, ':');
    if (parts.size() < 7) { continue; }
    const std::optional<uint32_t> uid = ParseId(parts[2]);
    const std::optional<uint32_t> gid = ParseId(parts[3]);
    if (!uid.has_value() || !gid.has_value()) { continue; }
    if (number.has_value() ? *uid != *number : parts[0] != (name_or_uid.empty() ? "root" : name_or_uid)) { continue; }
    user.uid = *uid;
    user.gid = *gid;
    user.name = parts[0];
    user.home = parts[5].empty() ? "/" : parts[5];
    user.shell = parts[6].empty() ? "/bin/sh" : parts[6];
    found = true;
    break;
  }
  if (!found && !number.has_value() && !name_or_uid.empty() && name_or_uid != "root") { return std::nullopt; }
  user.groups.push_back(user.gid);
  for (const std::string& line : Lines(kGroupPath)) {
    const std::vector<std::string> parts = Split(line, ':');
    if (parts.size() < 4) { continue; }
    const std::optional<uint32_t> gid = ParseId(parts[2]);
    if (!gid.has_value() || *gid == user.gid) { continue; }
    const std::vector<std::string> members = Split(parts[3], ',');
    if (std::find(members.begin(), members.end(), user.name) != members.end()) { user.groups.push_back(*gid); }
  }
  return user;
}

// Signals that whoever started the agent, or the agent itself, ignores: the only disposition that outlives execve.
std::vector<int> IgnoredSignals() {
  std::vector<int> ignored;
  for (int signal = 1; signal < NSIG; ++signal) {
    KernelSigaction action;
    if (syscall(SYS_rt_sigaction, signal, nullptr, &action, sizeof action.mask) == 0 && action.handler == SIG_IGN) { ignored.push_back(signal); }
  }
  return ignored;
}

const std::vector<int>& SignalsToReset() {
  static const std::vector<int> ignored = IgnoredSignals();
  return ignored;
}

void* ChildStack() {
  static void* const stack = mmap(nullptr, kChildStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  return stack;
}

}  // namespace

void PrepareToSpawn() {
  SignalsToReset();
  ChildStack();
  FindUser("");
}

std::optional<User> FindUser(const std::string& name_or_uid) {
  // The last answer, for as long as both files are as they were: nearly always root.
  struct Cached {
    std::string name;
    Signature passwd;
    Signature group;
    std::optional<User> user;
  };
  static std::optional<Cached> cached;
  const Signature passwd = SignatureOf(kPasswdPath);
  const Signature group = SignatureOf(kGroupPath);
  if (cached.has_value() && cached->name == name_or_uid && cached->passwd == passwd && cached->group == group) { return cached->user; }
  cached = Cached{name_or_uid, passwd, group, LookUpUser(name_or_uid)};
  return cached->user;
}

std::vector<std::string> MakeEnvironment(const User& user, bool tty, const std::vector<std::string>& overlay) {
  std::vector<std::string> env = {
      std::string("PATH=") + kDefaultPath, "HOME=" + user.home, "USER=" + user.name, "LOGNAME=" + user.name, "SHELL=" + user.shell, "LANG=C.UTF-8",
  };
  if (tty) { env.push_back("TERM=xterm-256color"); }
  for (const std::string& entry : overlay) {
    const std::string name = entry.substr(0, entry.find('=') + 1);
    std::erase_if(env, [&name](const std::string& old) { return old.starts_with(name); });
    env.push_back(entry);
  }
  return env;
}

std::pair<pid_t, SpawnFailure> Spawn(const SpawnSpec& spec) {
  const std::vector<char*> argv = Pointers(spec.argv);
  const std::vector<char*> env = Pointers(spec.env);
  std::vector<std::string> candidates;
  if (spec.argv[0].find('/') != std::string::npos) {
    candidates.push_back(spec.argv[0]);
  } else {
    std::string path = kDefaultPath;
    for (const std::string& entry : spec.env) {
      if (entry.starts_with("PATH=")) { path = entry.substr(5); }
    }
    for (const std::string& folder : Split(path, ':')) { candidates.push_back((folder.empty() ? "." : folder) + "/" + spec.argv[0]); }
  }
  Child child{&spec, argv.data(), env.data(), &candidates, spec.cwd.empty() ? spec.user.home.c_str() : spec.cwd.c_str(), spec.cwd.empty(), &SignalsToReset()};
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, &before);
  const pid_t pid = clone(RunChild, static_cast<char*>(ChildStack()) + kChildStackBytes, CLONE_VM | CLONE_VFORK | SIGCHLD, &child);
  const int clone_error = errno;
  sigprocmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) { return {-1, {"OUT_OF_RESOURCES", "start a process: " + ErrnoText(clone_error)}}; }
  if (child.failed != Stage::kNone) {
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
    return {-1, Explain(spec, child)};
  }
  return {pid, {}};
}

}  // namespace forkd::agent
