#include "vmm/qemu/qemu_vm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/async_event.h"
#include "base/error.h"
#include "base/runtime.h"
#include "base/status_macros.h"
#include "vmm/qemu/qemu_args.h"
#include "vmm/qemu/qmp_client.h"
#include "vmm/qemu/run_sockets.h"

namespace forkd::vmm {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kNoThrow = boost::asio::as_tuple(boost::asio::use_awaitable);

// A microvm's device state is 4 to 10 KB; one of this size is none.
constexpr int64_t kMaxDeviceStateBytes = 16 << 20;
// The console's ring, as qemu_args.cc sizes it.
constexpr int64_t kConsoleBytes = 65536;
// How long QEMU's end may take to be noticed once its control socket has closed.
constexpr auto kEndGrace = seconds(2);
constexpr std::size_t kMaxShownStderrBytes = 400;

std::string DrainStderr(int fd) {
  std::string text;
  char buffer[4096];
  // The pipe holds 64 KiB; more is only there if somebody writes as fast as this reads.
  while (fd >= 0 && text.size() < 128 * 1024) {
    const ssize_t got = ::read(fd, buffer, sizeof(buffer));
    if (got <= 0) { break; }
    text.append(buffer, static_cast<std::size_t>(got));
  }
  return text;
}

std::string EndOf(absl::string_view text) {
  while (!text.empty() && text.back() == '\n') { text.remove_suffix(1); }
  const std::size_t cut = text.size() > kMaxShownStderrBytes ? text.size() - kMaxShownStderrBytes : 0;
  return absl::CHexEscape(text.substr(cut));
}

std::string DescribeEnd(std::optional<int> wait_status, const std::string& stderr_text) {
  std::string how = "its process ended";
  if (wait_status.has_value() && WIFEXITED(*wait_status)) { how = absl::StrCat("it exited with status ", WEXITSTATUS(*wait_status)); }
  if (wait_status.has_value() && WIFSIGNALED(*wait_status)) { how = absl::StrCat("it was ended by signal ", WTERMSIG(*wait_status)); }
  return stderr_text.empty() ? how : absl::StrCat(how, "; it said: ", EndOf(stderr_text));
}

absl::StatusOr<UniqueFd> NewMemfd(const char* name) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd.valid()) { return ErrnoError(errno, "create a memfd"); }
  return fd;
}

absl::StatusOr<UniqueFd> MemfdOf(const std::string& bytes) {
  FORKD_ASSIGN_OR_RETURN(UniqueFd fd, NewMemfd("forkd-device-state"));
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t put = ::pwrite(fd.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (put < 0) { return ErrnoError(errno, "write a device state into memory"); }
    done += static_cast<std::size_t>(put);
  }
  return fd;
}

absl::StatusOr<std::string> ContentsOf(int memfd) {
  struct stat info {};
  if (::fstat(memfd, &info) != 0) { return ErrnoError(errno, "stat a device state"); }
  if (info.st_size <= 0 || info.st_size > kMaxDeviceStateBytes) {
    return Error(absl::StatusCode::kInternal, Reason::kVmmProtocol, absl::StrCat("QEMU wrote a device state of ", info.st_size, " bytes"));
  }
  std::string bytes(static_cast<std::size_t>(info.st_size), '\0');
  if (::pread(memfd, bytes.data(), bytes.size(), 0) != info.st_size) { return ErrnoError(errno, "read a device state"); }
  return bytes;
}

absl::Status NotPaused() {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kSandboxNotPaused, "the VM runs; pause it first");
}

absl::Status UnexpectedReply(absl::string_view command) {
  return Error(absl::StatusCode::kInternal, Reason::kVmmProtocol, absl::StrCat("QEMU's reply to ", command, " has an unknown form"));
}

}  // namespace

// Where QEMU writes device states: a memfd, in a descriptor set of QEMU's. One for a VM's whole life, because QEMU 7.2 closes what remove-fd
// takes out of a set only if the guest runs at that moment (monitor_fdset_cleanup).
struct QemuVm::StateTarget {
  uint64_t fdset = 0;
  UniqueFd memfd;
  UniqueFd write_only;  // the same file, as QEMU has it
};

// Shared with the coroutines that watch the process, which outlive the VM until its process is gone and reaped.
struct QemuVm::State : std::enable_shared_from_this<QemuVm::State> {
  State(Parts p, Executor e, BlockingPool* bp, Launcher* l)
      : parts(std::move(p)), executor(e), pool(bp), launcher(l), process_watch(e), process_ended(e), load_ended(e) {}

  void Report(VmExit::Kind kind, std::string reason) {
    if (exit.has_value()) { return; }
    exit = VmExit{.kind = kind, .reason = std::move(reason)};
    load_ended.Set();
    Notify();
  }

  void Notify() {
    if (!exit.has_value() || !callback) { return; }
    auto called = std::exchange(callback, nullptr);
    called(*exit);
  }

  // What a call on a VM that is of no use any more answers.
  absl::Status Gone() const {
    return Error(absl::StatusCode::kUnavailable, Reason::kVmmFailed, absl::StrCat("the VMM of ", Quoted(parts.id), " is gone: ", exit->reason));
  }

  absl::Status CheckUsable() const {
    if (exit.has_value()) { return Gone(); }
    if (qmp == nullptr) { return Error(absl::StatusCode::kInternal, Reason::kInternal, "the VM has no control connection"); }
    return absl::OkStatus();
  }

  void OnEvent(const QmpEvent& event) {
    if (event.name == "STOP") {
      paused = true;
      // The VMM stops its guest by itself only when it cannot go on.
      if (!stop_asked) { SpawnOn(executor, CheckUnexpectedStop(shared_from_this())); }
    } else if (event.name == "RESUME") {
      paused = false;
    } else if (event.name == "MIGRATION") {
      const std::string status = event.data.value("status", json()).is_string() ? event.data["status"].get<std::string>() : "";
      if (status == "completed" || status == "failed" || status == "cancelled") {
        load_status = status;
        load_ended.Set();
      }
    } else if (event.name == "SHUTDOWN") {
      const std::string why = event.data.value("reason", json()).is_string() ? event.data["reason"].get<std::string>() : "unknown";
      const bool by_guest = event.data.value("guest", json()) == true;
      foretold = VmExit{.kind = by_guest ? VmExit::Kind::kShutdown : VmExit::Kind::kProcessEnded,
                        .reason = absl::StrCat(by_guest ? "the guest shut down or reset (" : "QEMU was shut down (", absl::CHexEscape(why), ")")};
    } else if (event.name == "GUEST_PANICKED") {
      foretold = VmExit{.kind = VmExit::Kind::kPanicked, .reason = "the guest's kernel panicked"};
    }
  }

  void OnBroken(const absl::Status& why) {
    if (ReasonOf(why) == ReasonName(Reason::kVmmFailed)) {
      SpawnOn(executor, ReportUnlessEnded(shared_from_this(), std::string(why.message())));
    } else {
      Report(VmExit::Kind::kInternalError, std::string(why.message()));
    }
  }

  Parts parts;
  Executor executor;
  BlockingPool* pool;
  Launcher* launcher;
  // A duplicate of the pidfd: readable once the process has ended.
  boost::asio::posix::stream_descriptor process_watch;
  AsyncEvent process_ended;
  AsyncEvent load_ended;
  std::string load_status;
  std::unique_ptr<QmpClient> qmp;
  // What PrepareBranch has left for CollectDivergedPages.
  CollectPlan plan;
  std::optional<StateTarget> state_target;
  bool paused = false;
  bool stop_asked = false;
  bool kill_asked = false;
  bool released = false;
  std::optional<VmExit> foretold;
  std::optional<VmExit> exit;
  absl::AnyInvocable<void(const VmExit&)> callback;
};

QemuVm::QemuVm(Parts parts, Executor executor, BlockingPool* pool, Launcher* launcher)
    : Vm(parts.process, parts.root), state_(std::make_shared<State>(std::move(parts), executor, pool, launcher)) {
  SpawnOn(executor, WatchProcess(state_));
}

QemuVm::~QemuVm() {
  state_->callback = nullptr;
  if (state_->released || state_->process_ended.IsSet()) { return; }
  state_->kill_asked = true;
  // Not through the pool: a destructor does not wait. The watch reaps it and removes its sockets.
  const absl::Status ignored = state_->launcher->Kill(state_->parts.pidfd);
}

Task<void> QemuVm::WatchProcess(std::shared_ptr<State> state) {
  UniqueFd watched(::fcntl(state->parts.pidfd.fd(), F_DUPFD_CLOEXEC, 3));
  if (!watched.valid()) {
    state->Report(VmExit::Kind::kInternalError, "the process cannot be watched: no descriptors left");
    co_return;
  }
  boost::system::error_code assigned;
  state->process_watch.assign(watched.get(), assigned);
  if (assigned) {
    state->Report(VmExit::Kind::kInternalError, "the process cannot be watched");
    co_return;
  }
  [[maybe_unused]] const int owned_by_watch = watched.release();
  const auto [error] = co_await state->process_watch.async_wait(boost::asio::posix::stream_descriptor::wait_read, kNoThrow);
  if (error || state->released) { co_return; }
  state->process_watch.close(assigned);
  const std::optional<int> wait_status = state->parts.pidfd.ReapIfExited();
  const std::string said = DrainStderr(state->parts.stderr_read.get());
  RemoveRunSockets(state->parts.run_dir);
  state->process_ended.Set();
  if (state->kill_asked) {
    state->Report(VmExit::Kind::kKilled, "it was killed");
  } else if (state->foretold.has_value()) {
    state->Report(state->foretold->kind, state->foretold->reason);
  } else {
    state->Report(VmExit::Kind::kProcessEnded, DescribeEnd(wait_status, said));
  }
}

Task<void> QemuVm::ReportUnlessEnded(std::shared_ptr<State> state, std::string reason) {
  const bool ended = co_await state->process_ended.Wait(Deadline::In(kEndGrace));
  if (!ended && !state->released) { state->Report(VmExit::Kind::kInternalError, std::move(reason)); }
}

Task<void> QemuVm::CheckUnexpectedStop(std::shared_ptr<State> state) {
  absl::StatusOr<json> reply = co_await Command(state, "query-status", json::object(), Deadline::In(seconds(5)));
  if (!reply.ok()) { co_return; }
  const json status = reply->is_object() ? reply->value("status", json()) : json();
  if (!status.is_string() || status == "running" || status == "paused") { co_return; }
  if (status == "shutdown" || status == "guest-panicked") { co_return; }
  state->Report(VmExit::Kind::kInternalError, absl::StrCat("QEMU stopped the guest: ", absl::CHexEscape(status.get<std::string>())));
}

Task<absl::StatusOr<json>> QemuVm::Command(std::shared_ptr<State> state, std::string command, json arguments, Deadline deadline, int fd) {
  FORKD_CO_RETURN_IF_ERROR(state->CheckUsable());
  absl::StatusOr<json> reply = co_await state->qmp->Execute(std::move(command), std::move(arguments), deadline, fd);
  if (reply.ok() || reply.status().code() != absl::StatusCode::kUnavailable) { co_return reply; }
  // The socket closed because the process ended: its own reason says more.
  co_await state->process_ended.Wait(deadline.Within(kEndGrace));
  if (state->exit.has_value()) { co_return state->Gone(); }
  co_return reply;
}

Task<absl::Status> QemuVm::ConnectControl(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  absl::StatusOr<UniqueFd> socket = ConnectInRunDir(state->parts.run_dir, kQmpSocketName);
  if (!socket.ok()) {
    // Its listening socket closes when the process ends, whose own reason says more.
    co_await state->process_ended.Wait(deadline.Within(kEndGrace));
    co_return state->exit.has_value() ? state->Gone() : socket.status();
  }
  QmpClient::Handlers handlers;
  // The client is destroyed with `state`, so it never outlives what these refer to; weak, because of the ones that run while it goes.
  std::weak_ptr<State> weak = state;
  handlers.on_event = [weak](const QmpEvent& event) {
    if (const std::shared_ptr<State> held = weak.lock()) { held->OnEvent(event); }
  };
  handlers.on_broken = [weak](const absl::Status& why) {
    if (const std::shared_ptr<State> held = weak.lock()) { held->OnBroken(why); }
  };
  absl::StatusOr<std::unique_ptr<QmpClient>> client = co_await QmpClient::Open(*std::move(socket), std::move(handlers), deadline);
  if (!client.ok()) {
    if (client.status().code() != absl::StatusCode::kUnavailable) { co_return client.status(); }
    // The socket closed because the process ended: its own reason says more.
    co_await state->process_ended.Wait(deadline.Within(kEndGrace));
    co_return state->exit.has_value() ? state->Gone() : client.status();
  }
  state->qmp = *std::move(client);
  const absl::StatusOr<VmStatus> status = co_await QueryOn(state, deadline);
  if (!status.ok()) { co_return status.status(); }
  if (*status == VmStatus::kFailed) { state->Report(VmExit::Kind::kInternalError, "QEMU has stopped the guest for good"); }
  co_return absl::OkStatus();
}

Task<absl::Status> QemuVm::Inject(std::shared_ptr<const PageSet> pages) {
  std::shared_ptr<State> state = state_;
  auto inject = [state, pages] { return state->launcher->Inject(state->parts.process, *state->parts.root, *pages); };
  const absl::Status injected = co_await state->pool->Run(std::move(inject));
  co_return injected;
}

Task<absl::Status> QemuVm::Load(std::shared_ptr<const std::string> device_state, Deadline deadline) {
  return LoadOn(state_, std::move(device_state), deadline);
}

Task<absl::Status> QemuVm::LoadOn(std::shared_ptr<State> state, std::shared_ptr<const std::string> device_state, Deadline deadline) {
  absl::StatusOr<UniqueFd> stream = MemfdOf(*device_state);
  if (!stream.ok()) { co_return stream.status(); }
  json name = json::object({{"fdname", "state"}});
  absl::StatusOr<json> reply = co_await Command(state, "getfd", std::move(name), deadline, stream->get());
  if (!reply.ok()) { co_return reply.status(); }
  stream->reset();
  json uri = json::object({{"uri", "fd:state"}});
  reply = co_await Command(state, "migrate-incoming", std::move(uri), deadline);
  if (!reply.ok()) { co_return reply.status(); }
  const bool ended = co_await state->load_ended.Wait(deadline);
  if (!ended) { co_return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, "QEMU did not load the device state in time"); }
  if (!state->exit.has_value() && state->load_status != "completed") {
    // QEMU 7.2 ends itself then, having said why.
    co_await state->process_ended.Wait(deadline.Within(kEndGrace));
  }
  if (state->exit.has_value() || state->load_status != "completed") {
    co_return Error(absl::StatusCode::kInternal, Reason::kVmmFailed,
                    absl::StrCat("QEMU does not load the device state: ", state->exit.has_value() ? state->exit->reason : state->load_status));
  }
  // It grumbles ("Expected vmdescription section, but got 0"): out of the way of what it may say later.
  DrainStderr(state->parts.stderr_read.get());
  const absl::StatusOr<VmStatus> status = co_await QueryOn(state, deadline);
  if (!status.ok()) { co_return status.status(); }
  if (*status != VmStatus::kPaused) {
    co_return Error(absl::StatusCode::kInternal, Reason::kVmmProtocol, "QEMU is not paused after it has loaded a device state");
  }
  co_return absl::OkStatus();
}

Task<absl::Status> QemuVm::Pause(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  state->stop_asked = true;
  const absl::StatusOr<json> reply = co_await Command(state, "stop", json::object(), deadline);
  state->stop_asked = false;
  if (reply.ok()) { state->paused = true; }
  co_return reply.status();
}

Task<absl::Status> QemuVm::Resume(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  state->plan = CollectPlan();
  const absl::StatusOr<json> reply = co_await Command(state, "cont", json::object(), deadline);
  if (reply.ok()) { state->paused = false; }
  co_return reply.status();
}

Task<absl::StatusOr<VmStatus>> QemuVm::QueryStatus(Deadline deadline) { return QueryOn(state_, deadline); }

Task<absl::StatusOr<VmStatus>> QemuVm::QueryOn(std::shared_ptr<State> state, Deadline deadline) {
  absl::StatusOr<json> reply = co_await Command(state, "query-status", json::object(), deadline);
  if (!reply.ok()) { co_return reply.status(); }
  const json status = reply->is_object() ? reply->value("status", json()) : json();
  if (!status.is_string()) { co_return UnexpectedReply("query-status"); }
  const std::string name = status.get<std::string>();
  // qapi/run-state.json, RunState.
  if (name == "running") {
    state->paused = false;
    co_return VmStatus::kRunning;
  }
  state->paused = true;
  const bool waits = name == "paused" || name == "prelaunch" || name == "inmigrate" || name == "save-vm" || name == "postmigrate";
  co_return waits ? VmStatus::kPaused : VmStatus::kFailed;
}

Task<absl::StatusOr<std::string>> QemuVm::SaveDeviceState(Deadline deadline) { return SaveOn(state_, deadline); }

Task<absl::Status> QemuVm::EnsureStateTarget(std::shared_ptr<State> state, Deadline deadline) {
  if (state->state_target.has_value()) { co_return absl::OkStatus(); }
  absl::StatusOr<UniqueFd> memfd = NewMemfd("forkd-device-state");
  if (!memfd.ok()) { co_return memfd.status(); }
  // QEMU refuses a descriptor that may read, too, where it is to write.
  UniqueFd write_only(::open(absl::StrCat("/proc/self/fd/", memfd->get()).c_str(), O_WRONLY | O_CLOEXEC));
  if (!write_only.valid()) { co_return ErrnoError(errno, "open a memfd for writing"); }
  // QEMU chooses the number: an earlier daemon's set may still be there.
  const absl::StatusOr<json> reply = co_await Command(state, "add-fd", json::object(), deadline, write_only.get());
  if (!reply.ok()) { co_return reply.status(); }
  const json fdset = reply->is_object() ? reply->value("fdset-id", json()) : json();
  if (!fdset.is_number_unsigned()) { co_return UnexpectedReply("add-fd"); }
  state->state_target = StateTarget{.fdset = fdset.get<uint64_t>(), .memfd = *std::move(memfd), .write_only = std::move(write_only)};
  co_return absl::OkStatus();
}

Task<absl::StatusOr<std::string>> QemuVm::SaveOn(std::shared_ptr<State> state, Deadline deadline) {
  FORKD_CO_RETURN_IF_ERROR(state->CheckUsable());
  if (!state->paused) { co_return NotPaused(); }
  const absl::Status ready = co_await EnsureStateTarget(state, deadline);
  if (!ready.ok()) { co_return ready; }
  // QEMU writes through a duplicate, which shares its offset with ours.
  if (::ftruncate(state->state_target->memfd.get(), 0) != 0 || ::lseek(state->state_target->write_only.get(), 0, SEEK_SET) != 0) {
    co_return ErrnoError(errno, "rewind a memfd");
  }
  // live=false: with true QEMU gives up its disks, for another host to take.
  json to = json::object({{"filename", absl::StrCat("/dev/fdset/", state->state_target->fdset)}, {"live", false}});
  const absl::StatusOr<json> saved = co_await Command(state, "xen-save-devices-state", std::move(to), deadline);
  if (!saved.ok()) {
    // QEMU may be writing still: the next save must not share its file.
    state->state_target.reset();
    co_return saved.status();
  }
  co_return ContentsOf(state->state_target->memfd.get());
}

Task<absl::Status> QemuVm::PrepareBranch(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  FORKD_CO_RETURN_IF_ERROR(state->CheckUsable());
  auto prepare = [state] { return state->launcher->PrepareCollect(state->parts.process, *state->parts.root); };
  absl::StatusOr<CollectPlan> plan = co_await state->pool->Run(std::move(prepare));
  if (!plan.ok()) { co_return plan.status(); }
  state->plan = *std::move(plan);
  co_return co_await EnsureStateTarget(state, deadline);
}

Task<absl::StatusOr<PageSet>> QemuVm::CollectDivergedPages(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  FORKD_CO_RETURN_IF_ERROR(state->CheckUsable());
  if (!state->paused) { co_return NotPaused(); }
  // Bounded by the guest's memory, so the deadline is only looked at afterwards: a copy cannot be taken back half-way.
  CollectPlan plan = std::exchange(state->plan, CollectPlan());
  auto collect = [state, &plan] { return state->launcher->CollectDivergedPages(state->parts.process, *state->parts.root, std::move(plan)); };
  absl::StatusOr<PageSet> pages = co_await state->pool->Run(std::move(collect));
  if (pages.ok() && deadline.Expired()) {
    co_return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, "the diverged pages were not copied in time");
  }
  co_return pages;
}

Task<absl::StatusOr<UniqueFd>> QemuVm::ConnectAgent(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  if (state->exit.has_value()) { co_return state->Gone(); }
  co_return ConnectInRunDir(state->parts.run_dir, kAgentSocketName);
}

Task<absl::StatusOr<std::string>> QemuVm::ReadConsole(int64_t max_bytes, Deadline deadline) {
  std::shared_ptr<State> state = state_;
  json arguments = json::object({{"device", "console"}, {"size", std::clamp<int64_t>(max_bytes, 1, kConsoleBytes)}, {"format", "base64"}});
  const absl::StatusOr<json> reply = co_await Command(state, "ringbuf-read", std::move(arguments), deadline);
  if (!reply.ok()) { co_return reply.status(); }
  std::string bytes;
  if (!reply->is_string() || !absl::Base64Unescape(reply->get<std::string>(), &bytes)) { co_return UnexpectedReply("ringbuf-read"); }
  co_return bytes;
}

Task<absl::Status> QemuVm::Kill(Deadline deadline) {
  std::shared_ptr<State> state = state_;
  if (state->process_ended.IsSet()) { co_return absl::OkStatus(); }
  state->kill_asked = true;
  auto kill = [state] { return state->launcher->Kill(state->parts.pidfd); };
  const absl::Status killed = co_await state->pool->Run(std::move(kill));
  if (!killed.ok()) { co_return killed; }
  const bool ended = co_await state->process_ended.Wait(deadline);
  if (ended) { co_return absl::OkStatus(); }
  co_return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, absl::StrCat("process ", state->parts.process.pid, " did not end in time"));
}

void QemuVm::OnExit(absl::AnyInvocable<void(const VmExit&)> callback) {
  state_->callback = std::move(callback);
  state_->Notify();
}

void QemuVm::Release() {
  state_->released = true;
  state_->callback = nullptr;
  state_->qmp.reset();
  boost::system::error_code ignored;
  state_->process_watch.close(ignored);
}

}  // namespace forkd::vmm
