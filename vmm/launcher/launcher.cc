#include "vmm/launcher/launcher.h"

#include <fcntl.h>
#include <sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "vmm/launcher/jail.h"
#include "vmm/pages/diverged_pages.h"

namespace forkd::vmm {
namespace {

constexpr char kRunDirVariable[] = "FORKD_RUN_DIR=";
// How long the ends of killed strays are waited for; a VMM's end takes milliseconds.
constexpr auto kStrayGrace = std::chrono::seconds(5);
// What a guest may write between the preparation and its stop without a new buffer being needed: 1 MiB.
constexpr std::size_t kSparePages = 256;
// An environment of ours has three short variables and a path.
constexpr std::size_t kMaxEnvironmentBytes = 16384;

// All that the child needs between vfork and exec, made beforehand: it shares our memory then and may neither allocate nor lock.
struct ChildPlan {
  char** argv;
  char** environment;
  // Ascending by target; sources lie above every target.
  const InheritedFd* inherited;
  std::size_t inherited_count;
  int dev_null;
  int stderr_write;
  rlim_t max_open_files;
  // Null: no jail.
  const JailPlan::Parts* jail;
  const int* cgroups;
  std::size_t cgroup_count;
};

// Which step the child could not take; written by the child into our memory.
struct ChildFailure {
  const char* volatile step = nullptr;
  volatile int error = 0;
};

void Fail(ChildFailure* failure, const char* step) {
  failure->error = errno;
  failure->step = step;
  ::_exit(127);
}

// Runs in the child, on our stack's continuation; async-signal-safe calls alone.
[[noreturn]] void BecomeProgram(const ChildPlan& plan, ChildFailure* failure) {
  // Dispositions are the child's own (no CLONE_SIGHAND); ignored ones would survive exec.
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) { ::sigaction(signal, &by_default, nullptr); }
  for (std::size_t i = 0; i < plan.cgroup_count; ++i) {
    if (::write(plan.cgroups[i], "0", 1) != 1) { Fail(failure, "join a cgroup"); }
  }
  if (::setsid() < 0) { Fail(failure, "start a session"); }
  if (::dup2(plan.dev_null, 0) < 0 || ::dup2(plan.dev_null, 1) < 0 || ::dup2(plan.stderr_write, 2) < 0) { Fail(failure, "set up standard streams"); }
  // Sources lie above every target, so none is overwritten before it is handed over.
  for (std::size_t i = 0; i < plan.inherited_count; ++i) {
    if (::dup2(plan.inherited[i].fd, plan.inherited[i].target) < 0) { Fail(failure, "hand over a descriptor"); }
  }
  // Everything else is closed now, not at exec: if the daemon is killed meanwhile, its lock of the state folder must not live on in here.
  unsigned next = 3;
  for (std::size_t i = 0; i < plan.inherited_count; ++i) {
    const unsigned target = static_cast<unsigned>(plan.inherited[i].target);
    if (target > next && ::syscall(SYS_close_range, next, target - 1, 0) != 0) { Fail(failure, "close descriptors"); }
    next = target + 1;
  }
  if (::syscall(SYS_close_range, next, ~0u, 0) != 0) { Fail(failure, "close descriptors"); }
  const rlimit no_core{0, 0};
  const rlimit files{plan.max_open_files, plan.max_open_files};
  if (::setrlimit(RLIMIT_CORE, &no_core) != 0 || ::setrlimit(RLIMIT_NOFILE, &files) != 0) { Fail(failure, "set resource limits"); }
  ::umask(022);  // The jail's folders must be open to its uid.
  if (plan.jail != nullptr) {
    if (const char* step = EnterJail(*plan.jail); step != nullptr) { Fail(failure, step); }
  }
  ::umask(077);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve(plan.argv[0], plan.argv, plan.environment);
  Fail(failure, "execute");
  __builtin_unreachable();
}

struct Birth {
  const ChildPlan* plan;
  ChildFailure* failure;
};

int BornInto(void* argument) {
  const Birth* birth = static_cast<const Birth*>(argument);
  BecomeProgram(*birth->plan, birth->failure);
}

// As vfork: the caller's memory is not copied, however large the daemon is, and the caller waits until the program runs or the child has failed. The
// child has a stack of its own, and the namespaces of its jail from birth: a pid namespace cannot be entered later.
absl::StatusOr<pid_t> CloneInto(const ChildPlan& plan, ChildFailure* failure) {
  // EnterJail and execve need little; the kernel's own limit on argument strings does not count here.
  constexpr std::size_t kStackBytes = 256 * 1024;
  FORKD_ASSIGN_OR_RETURN(Mapping stack, Mapping::Anonymous(kStackBytes, Mapping::Prefault::kNo));
  Birth birth{&plan, failure};
  char* const top = stack.data() + kStackBytes;
  const int flags = CLONE_VM | CLONE_VFORK | SIGCHLD | (plan.jail != nullptr ? JailCloneFlags() : 0);
  const pid_t pid = ::clone(BornInto, top, flags, &birth);
  if (pid < 0) { return ErrnoError(errno, "start a process"); }
  return pid;
}

absl::StatusOr<UniqueFd> OpenDevNull() {
  UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!fd.valid()) { return ErrnoError(errno, "open \"/dev/null\""); }
  return fd;
}

absl::Status CheckSpec(const SpawnSpec& spec) {
  if (spec.argv.empty() || spec.argv[0].empty() || spec.argv[0][0] != '/') {
    return Error(absl::StatusCode::kInternal, Reason::kInternal, "a program to start needs an absolute path");
  }
  if (spec.run_dir.find('\0') != std::string::npos) { return InvalidField("run_dir", "has a NUL byte"); }
  for (const std::string& argument : spec.argv) {
    if (argument.find('\0') != std::string::npos) { return InvalidField("argv", absl::StrCat("argument ", Quoted(argument), " has a NUL byte")); }
  }
  return absl::OkStatus();
}

// The value of FORKD_RUN_DIR of a process; empty if it has none, or is gone, or is not ours to read.
std::string RunDirOf(pid_t pid) {
  const UniqueFd fd(::open(absl::StrCat("/proc/", pid, "/environ").c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) { return ""; }
  std::string text(kMaxEnvironmentBytes, '\0');
  const ssize_t length = ::read(fd.get(), text.data(), text.size());
  if (length <= 0) { return ""; }
  text.resize(static_cast<std::size_t>(length));
  for (const absl::string_view variable : absl::StrSplit(text, '\0')) {
    if (absl::StartsWith(variable, kRunDirVariable)) { return std::string(absl::StripPrefix(variable, kRunDirVariable)); }
  }
  return "";
}

std::vector<pid_t> AllPids() {
  std::vector<pid_t> pids;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc", error), end; !error && entry != end; entry.increment(error)) {
    pid_t pid = 0;
    if (absl::SimpleAtoi(entry->path().filename().string(), &pid)) { pids.push_back(pid); }
  }
  return pids;
}

absl::Status GoneDuring(ProcessId process) {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kVmmFailed, absl::StrCat("process ", process.pid, " has ended"));
}

}  // namespace

absl::StatusOr<SpawnedProcess> Launcher::Spawn(const SpawnSpec& spec) {
  FORKD_RETURN_IF_ERROR(CheckSpec(spec));
  FORKD_ASSIGN_OR_RETURN(const UniqueFd dev_null, OpenDevNull());
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) { return ErrnoError(errno, "make a pipe"); }
  UniqueFd stderr_read(ends[0]);
  UniqueFd stderr_write(ends[1]);

  std::vector<InheritedFd> inherited = spec.inherited;
  std::sort(inherited.begin(), inherited.end(), [](const InheritedFd& a, const InheritedFd& b) { return a.target < b.target; });
  for (std::size_t i = 0; i < inherited.size(); ++i) {
    if (inherited[i].target < 3 || (i > 0 && inherited[i].target == inherited[i - 1].target)) {
      return Error(absl::StatusCode::kInternal, Reason::kInternal, absl::StrCat("descriptor ", inherited[i].target, " is reserved or given twice"));
    }
  }
  // Sources above every target: no dup2 can hit one that is still to be handed over.
  const int above = inherited.empty() ? 3 : inherited.back().target + 1;
  std::vector<UniqueFd> raised;
  for (InheritedFd& entry : inherited) {
    raised.emplace_back(::fcntl(entry.fd, F_DUPFD_CLOEXEC, above));
    if (!raised.back().valid()) { return ErrnoError(errno, absl::StrCat("duplicate descriptor ", entry.fd)); }
    entry.fd = raised.back().get();
  }
  UniqueFd raised_null(::fcntl(dev_null.get(), F_DUPFD_CLOEXEC, above));
  UniqueFd raised_stderr(::fcntl(stderr_write.get(), F_DUPFD_CLOEXEC, above));
  if (!raised_null.valid() || !raised_stderr.valid()) { return ErrnoError(errno, "duplicate a descriptor"); }

  std::vector<char*> argv;
  for (const std::string& argument : spec.argv) { argv.push_back(const_cast<char*>(argument.c_str())); }
  argv.push_back(nullptr);
  // Nothing of the daemon's environment: it may hold secrets.
  std::string language = "LC_ALL=C";
  std::string path = "PATH=/usr/bin:/bin";
  std::string run_dir = absl::StrCat(kRunDirVariable, spec.run_dir);
  char* environment[] = {language.data(), path.data(), run_dir.data(), nullptr};
  UidLease uid;
  std::optional<JailPlan> jail;
  if (spec.walls == Walls::kJail) {
    FORKD_ASSIGN_OR_RETURN(uid, uids_.Lease());
    // The gid is the uid's twin: a number that nothing else on the host has.
    jail.emplace(JailSpec{.uid = uid.uid(), .gid = uid.uid(), .read_only_folders = spec.visible_folders, .kvm = spec.kvm}, spec.run_dir);
  }
  const ChildPlan plan{.argv = argv.data(),
                       .environment = environment,
                       .inherited = inherited.data(),
                       .inherited_count = inherited.size(),
                       .dev_null = raised_null.get(),
                       .stderr_write = raised_stderr.get(),
                       .max_open_files = static_cast<rlim_t>(spec.max_open_files),
                       .jail = jail.has_value() ? &jail->parts() : nullptr,
                       .cgroups = spec.cgroups.data(),
                       .cgroup_count = spec.cgroups.size()};
  ChildFailure failure;
  // A handler of ours must not run in the child while it shares our memory.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const absl::StatusOr<pid_t> born = CloneInto(plan, &failure);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!born.ok()) { return born.status(); }
  const pid_t pid = *born;
  if (failure.step != nullptr) {
    ::waitpid(pid, nullptr, 0);
    return ErrnoError(failure.error, absl::StrCat(failure.step, " ", Quoted(spec.argv[0])));
  }

  // It is our child and not reaped: the pid is its own until we do.
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const int pidfd_errno = errno;
  const absl::StatusOr<ProcessId> id = Pidfd::IdentityOf(pid);
  if (!pidfd.valid() || !id.ok()) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return pidfd.valid() ? id.status() : ErrnoError(pidfd_errno, "open a pidfd");
  }
  return SpawnedProcess{.id = *id, .pidfd = Pidfd(std::move(pidfd)), .stderr_read = std::move(stderr_read), .uid = std::move(uid)};
}

UidLease Launcher::AdoptUid(ProcessId id) {
  std::ifstream status(absl::StrCat("/proc/", id.pid, "/status"));
  for (std::string line; std::getline(status, line);) {
    uint32_t uid = 0;
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar("\t "), absl::SkipEmpty());
    if (words.size() > 1 && words[0] == "Uid:" && absl::SimpleAtoi(words[1], &uid)) { return uids_.Adopt(uid); }
  }
  return UidLease();
}

absl::StatusOr<Pidfd> Launcher::OpenProcess(ProcessId id) { return Pidfd::Open(id); }

absl::StatusOr<RootImage> Launcher::OpenRootImage(const Pidfd& process, int target) {
  FORKD_ASSIGN_OR_RETURN(UniqueFd fd, process.DuplicateFd(target));
  return RootImage::FromFd(std::move(fd));
}

absl::StatusOr<CollectPlan> Launcher::PrepareCollect(ProcessId process, const RootImage& root) {
  FORKD_ASSIGN_OR_RETURN(const Pidfd pidfd, Pidfd::Open(process));
  CollectPlan plan;
  FORKD_ASSIGN_OR_RETURN(plan.mappings, FindRootMappings(process.pid, root.inode(), root.size_bytes()));
  FORKD_ASSIGN_OR_RETURN(const std::vector<PageIndex> indexes, ScanDivergedPages(process.pid, plan.mappings));
  const std::size_t pages = indexes.size() + indexes.size() / 8 + kSparePages;
  FORKD_ASSIGN_OR_RETURN(plan.buffer, Mapping::Anonymous(pages * static_cast<std::size_t>(kPageBytes), Mapping::Prefault::kYes));
  if (pidfd.HasExited()) { return GoneDuring(process); }
  return plan;
}

absl::StatusOr<PageSet> Launcher::CollectDivergedPages(ProcessId process, const RootImage& root, CollectPlan plan) {
  FORKD_ASSIGN_OR_RETURN(const Pidfd pidfd, Pidfd::Open(process));
  // A VMM's mapping of its guest's memory does not move while it lives.
  if (plan.mappings.empty()) { FORKD_ASSIGN_OR_RETURN(plan.mappings, FindRootMappings(process.pid, root.inode(), root.size_bytes())); }
  FORKD_ASSIGN_OR_RETURN(std::vector<PageIndex> indexes, ScanDivergedPages(process.pid, plan.mappings));
  FORKD_ASSIGN_OR_RETURN(PageSet pages, CopyPages(process.pid, plan.mappings, std::move(indexes), std::move(plan.buffer)));
  // Alive still: then the pid was this process's all the while.
  if (pidfd.HasExited()) { return GoneDuring(process); }
  return pages;
}

absl::Status Launcher::Inject(ProcessId process, const RootImage& root, const PageSet& pages) {
  FORKD_ASSIGN_OR_RETURN(const Pidfd pidfd, Pidfd::Open(process));
  FORKD_ASSIGN_OR_RETURN(const std::vector<RootMapping> mappings, FindRootMappings(process.pid, root.inode(), root.size_bytes()));
  FORKD_RETURN_IF_ERROR(InjectPages(process.pid, mappings, pages));
  return pidfd.HasExited() ? GoneDuring(process) : absl::OkStatus();
}

int Launcher::KillStrays(const std::string& run_dir_prefix, const std::set<pid_t>& keep) {
  if (run_dir_prefix.empty()) { return 0; }
  std::vector<Pidfd> strays;
  for (const pid_t pid : AllPids()) {
    if (pid == ::getpid() || keep.count(pid) != 0) { continue; }
    const absl::StatusOr<ProcessId> id = Pidfd::IdentityOf(pid);
    if (!id.ok()) { continue; }
    absl::StatusOr<Pidfd> pidfd = Pidfd::Open(*id);
    // Its environment is read once the descriptor is held: it is this very process's.
    if (!pidfd.ok() || !absl::StartsWith(RunDirOf(pid), run_dir_prefix)) { continue; }
    if (pidfd->SendSignal(SIGKILL).ok()) { strays.push_back(*std::move(pidfd)); }
  }
  const Deadline deadline = Deadline::In(kStrayGrace);
  for (const Pidfd& stray : strays) {
    pollfd entry{.fd = stray.fd(), .events = POLLIN, .revents = 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.Remaining()).count();
    ::poll(&entry, 1, static_cast<int>(left));
    // A child of this very process, where a test plays both daemons.
    stray.ReapIfExited();
  }
  return static_cast<int>(strays.size());
}

absl::Status Launcher::Kill(const Pidfd& process) { return process.SendSignal(SIGKILL); }

}  // namespace forkd::vmm
