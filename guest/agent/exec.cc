#include "guest/agent/exec.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>

#include "guest/agent/console.h"
#include "guest/agent/spawn.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::agent {
namespace {

namespace pb = ::forkd::agent::v1;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// The contract's default (agent.proto), each direction.
constexpr uint32_t kDefaultWindowBytes = 256 * 1024;
constexpr uint32_t kMaxWindowBytes = 4 * 1024 * 1024;
constexpr std::size_t kMaxArgv = 4096;
constexpr std::size_t kMaxArgvBytes = 1024 * 1024;
constexpr std::size_t kChunkBytes = 32 * 1024;

// How long the output may stay open after the program's end before what still holds it is killed, and after that before it is given up.
constexpr milliseconds kDrainBeforeKill{250};
constexpr milliseconds kDrainAfterKill{100};

void SetNonBlocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

bool HasNul(const std::string& text) { return text.find('\0') != std::string::npos; }

}  // namespace

class Exec : public StreamHandler, public std::enable_shared_from_this<Exec> {
 public:
  Exec(ExecTable* table, EventLoop* loop, Call call) : table_(table), loop_(loop), call_(call) {}
  ~Exec() override { CloseAll(); }

  void OnMessage(const std::string& payload) override;
  void OnOrphaned() override;
  void OnWritable() override { Rearm(); }

  void SignalGroup(int signal);
  void Kill();
  bool attached_orphan() const { return discard_ && !detached_; }
  bool detached() const { return detached_; }

 private:
  enum Output { kOut = 0, kErr = 1 };

  void Start(const pb::ExecStart& start);
  Status Check(const pb::ExecStart& start) const;
  void FailStart(const SpawnFailure& failure);
  bool OpenStreams(const pb::ExecStart& start, int child_ends[3]);
  void OnReadable(Output which);
  void Rearm();
  void CloseOutput(Output which);
  void OnExited(int wait_status);
  void OnDrainTimer();
  void MaybeEnd();
  void QueueStdin(const std::string& data);
  void PumpStdin();
  void CloseStdin();
  void CloseAll();
  void Discard();

  ExecTable* table_;
  EventLoop* loop_;
  Call call_;
  uint64_t id_ = 0;
  pid_t pid_ = -1;
  bool started_ = false;
  bool tty_ = false;
  bool detached_ = false;
  // Nobody listens any more: output is read and dropped.
  bool discard_ = false;
  UniqueFd output_[2];
  // With a terminal: the same descriptor as output_[kOut], borrowed.
  int terminal_ = -1;
  UniqueFd stdin_;
  std::string stdin_queue_;
  uint64_t stdin_window_ = kDefaultWindowBytes;
  bool stdin_closing_ = false;
  uint64_t window_ = kDefaultWindowBytes;
  bool exited_ = false;
  int wait_status_ = 0;
  bool timed_out_ = false;
  enum class Drain { kWaiting, kKilled, kGivenUp } drain_ = Drain::kWaiting;
  bool output_cut_ = false;
  EventLoop::TimerId timeout_timer_ = 0;
  EventLoop::TimerId drain_timer_ = 0;
  steady_clock::time_point started_at_;
};

void Exec::OnMessage(const std::string& payload) {
  const auto keep = shared_from_this();
  pb::ExecInput input;
  if (!input.ParseFromString(payload)) {
    if (started_) { Kill(); }
    call_.Finish({Code::kInvalidArgument, "malformed input message"});
    Discard();
    return;
  }
  if (!started_) {
    if (input.kind_case() != pb::ExecInput::kStart) {
      call_.Finish({Code::kInvalidArgument, "the first message must be start"});
      return;
    }
    started_ = true;
    Start(input.start());
    return;
  }
  switch (input.kind_case()) {
    case pb::ExecInput::kStdinData: QueueStdin(input.stdin_data()); break;
    case pb::ExecInput::kCloseStdin:
      stdin_closing_ = true;
      PumpStdin();
      break;
    case pb::ExecInput::kResize:
      if (terminal_ >= 0) {
        winsize size{};
        size.ws_row = static_cast<unsigned short>(input.resize().rows());
        size.ws_col = static_cast<unsigned short>(input.resize().cols());
        ioctl(terminal_, TIOCSWINSZ, &size);
      }
      break;
    case pb::ExecInput::kSignal:
      if (input.signal() > 0 && input.signal() < NSIG) { SignalGroup(input.signal()); }
      break;
    case pb::ExecInput::kOutputWindowBytes:
      window_ = std::min<uint64_t>(window_ + input.output_window_bytes(), 1ull << 40);
      Rearm();
      break;
    case pb::ExecInput::kCancel:
      if (!detached_) { Kill(); }
      discard_ = true;
      Rearm();
      break;
    default: break;
  }
}

Status Exec::Check(const pb::ExecStart& start) const {
  if (start.argv_size() == 0 || start.argv(0).empty()) { return {Code::kInvalidArgument, "argv: empty"}; }
  if (static_cast<std::size_t>(start.argv_size()) > kMaxArgv) { return {Code::kInvalidArgument, "argv: more than 4096 elements"}; }
  std::size_t total = 0;
  for (const std::string& argument : start.argv()) {
    if (HasNul(argument)) { return {Code::kInvalidArgument, "argv: contains a NUL byte"}; }
    total += argument.size() + 1;
  }
  for (const std::string& entry : start.env()) {
    if (HasNul(entry)) { return {Code::kInvalidArgument, "env: contains a NUL byte"}; }
    if (entry.find('=') == std::string::npos || entry[0] == '=') { return {Code::kInvalidArgument, "env: an entry is not NAME=value"}; }
    total += entry.size() + 1;
  }
  if (total > kMaxArgvBytes) { return {Code::kInvalidArgument, "argv and env: more than 1 MiB"}; }
  const std::string& cwd = start.cwd();
  if (!cwd.empty() && (cwd[0] != '/' || HasNul(cwd) || cwd.size() >= PATH_MAX)) { return {Code::kInvalidArgument, "cwd: not an absolute path"}; }
  if (start.output_window_bytes() > kMaxWindowBytes) { return {Code::kInvalidArgument, "output_window_bytes: more than 4 MiB"}; }
  return {};
}

void Exec::Start(const pb::ExecStart& start) {
  if (const Status status = Check(start); !status.ok()) {
    call_.Finish(status);
    return;
  }
  started_at_ = steady_clock::now();
  detached_ = start.detached();
  tty_ = start.tty();
  if (start.output_window_bytes() > 0) { window_ = start.output_window_bytes(); }
  const std::optional<User> user = FindUser(start.user());
  if (!user.has_value()) {
    FailStart({"USER_UNKNOWN", start.user() + ": not in /etc/passwd"});
    return;
  }
  SpawnSpec spec;
  spec.argv.assign(start.argv().begin(), start.argv().end());
  spec.env = MakeEnvironment(*user, tty_, {start.env().begin(), start.env().end()});
  spec.user = *user;
  spec.cwd = start.cwd();
  spec.controlling_tty = tty_;
  if (!OpenStreams(start, spec.stdio)) {
    const int error = errno;
    for (int fd : spec.stdio) { UniqueFd closing(fd); }
    FailStart({"OUT_OF_RESOURCES", "open the standard streams: " + ErrnoText(error)});
    return;
  }
  const auto [pid, failure] = Spawn(spec);
  for (int fd : spec.stdio) { UniqueFd closing(fd); }
  if (pid < 0) {
    FailStart(failure);
    return;
  }
  pid_ = pid;
  id_ = table_->next_id_++;
  table_->running_[id_] = shared_from_this();
  loop_->OnExit(pid_, [self = shared_from_this()](int status) { self->OnExited(status); });
  if (start.timeout_ns() > 0) {
    const auto delay = std::chrono::nanoseconds(std::min<uint64_t>(start.timeout_ns(), INT64_MAX));
    timeout_timer_ = loop_->After(delay, [self = shared_from_this()] {
      self->timeout_timer_ = 0;
      self->timed_out_ = !self->exited_;
      self->Kill();
    });
  }
  pb::ExecOutput output;
  output.mutable_started()->set_exec_id(id_);
  output.mutable_started()->set_pid(pid_);
  call_.Send(output);
  Rearm();
}

void Exec::FailStart(const SpawnFailure& failure) {
  pb::ExecOutput output;
  output.mutable_end()->mutable_exec_error()->set_reason(failure.reason);
  output.mutable_end()->mutable_exec_error()->set_message(failure.message);
  call_.Send(output);
  call_.Finish({});
  CloseAll();
}

bool Exec::OpenStreams(const pb::ExecStart& start, int child_ends[3]) {
  if (tty_) {
    UniqueFd master(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
    int unlock = 0;
    if (!master || ioctl(master.get(), TIOCSPTLCK, &unlock) != 0) { return false; }
    UniqueFd slave(ioctl(master.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
    if (!slave) { return false; }
    winsize size{};
    size.ws_row = start.rows() > 0 ? static_cast<unsigned short>(start.rows()) : 24;
    size.ws_col = start.cols() > 0 ? static_cast<unsigned short>(start.cols()) : 80;
    ioctl(master.get(), TIOCSWINSZ, &size);
    child_ends[1] = fcntl(slave.get(), F_DUPFD_CLOEXEC, 5);
    child_ends[2] = fcntl(slave.get(), F_DUPFD_CLOEXEC, 5);
    child_ends[0] = slave.release();
    if (start.stdin_open()) { stdin_ = UniqueFd(fcntl(master.get(), F_DUPFD_CLOEXEC, 5)); }
    terminal_ = master.get();
    output_[kOut] = std::move(master);
    SetNonBlocking(terminal_);
    return child_ends[1] >= 0 && child_ends[2] >= 0;
  }
  int ends[2];
  if (start.stdin_open()) {
    if (pipe2(ends, O_CLOEXEC) != 0) { return false; }
    child_ends[0] = ends[0];
    stdin_ = UniqueFd(ends[1]);
    SetNonBlocking(stdin_.get());
  } else {
    child_ends[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (child_ends[0] < 0) { return false; }
  }
  for (Output which : {kOut, kErr}) {
    if (pipe2(ends, O_CLOEXEC) != 0) { return false; }
    output_[which] = UniqueFd(ends[0]);
    child_ends[1 + which] = ends[1];
    SetNonBlocking(ends[0]);
  }
  return true;
}

void Exec::Rearm() {
  const bool ready = discard_ || (window_ > 0 && !call_.Congested());
  for (Output which : {kOut, kErr}) {
    const int fd = output_[which].get();
    if (fd < 0) { continue; }
    if (ready && !loop_->Watches(fd)) {
      loop_->Add(fd, EPOLLIN, [self = shared_from_this(), which](uint32_t) { self->OnReadable(which); });
    } else if (!ready) {
      loop_->Remove(fd);
    }
  }
}

void Exec::OnReadable(Output which) {
  static char buffer[kChunkBytes];
  const std::size_t want = discard_ ? kChunkBytes : static_cast<std::size_t>(std::min<uint64_t>(kChunkBytes, window_));
  if (!discard_ && (want == 0 || call_.Congested())) {
    Rearm();
    return;
  }
  const ssize_t got = read(output_[which].get(), buffer, want);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) { return; }
  if (got <= 0) {  // A terminal answers EIO when its last user is gone.
    if (terminal_ == output_[which].get() && !exited_) {
      // The program has closed it on its way out, but is not gone: closing our end now would end it by SIGHUP before it can exit. Read again then.
      loop_->Remove(output_[which].get());
      return;
    }
    CloseOutput(which);
    MaybeEnd();
    return;
  }
  if (discard_) { return; }
  pb::ExecOutput output;
  (which == kOut ? output.mutable_stdout_data() : output.mutable_stderr_data())->assign(buffer, static_cast<std::size_t>(got));
  window_ -= static_cast<uint64_t>(got);
  call_.Send(output);
  if (window_ == 0 || call_.Congested()) { Rearm(); }
}

void Exec::CloseOutput(Output which) {
  if (!output_[which]) { return; }
  loop_->Remove(output_[which].get());
  if (terminal_ == output_[which].get()) {
    terminal_ = -1;
    CloseStdin();
  }
  output_[which].reset();
}

void Exec::QueueStdin(const std::string& data) {
  if (!stdin_ || stdin_closing_) { return; }
  if (data.size() > stdin_window_) {
    Kill();
    call_.Finish({Code::kInvalidArgument, "more stdin than the window allows"});
    Discard();
    return;
  }
  stdin_window_ -= data.size();
  stdin_queue_ += data;
  PumpStdin();
}

void Exec::PumpStdin() {
  if (!stdin_) { return; }
  std::size_t written = 0;
  bool broken = false;
  while (written < stdin_queue_.size()) {
    const ssize_t put = write(stdin_.get(), stdin_queue_.data() + written, stdin_queue_.size() - written);
    if (put < 0 && errno == EINTR) { continue; }
    if (put < 0 && errno == EAGAIN) { break; }
    if (put <= 0) {
      broken = true;
      break;
    }
    written += static_cast<std::size_t>(put);
  }
  stdin_queue_.erase(0, written);
  if (broken) {
    CloseStdin();
    pb::ExecOutput output;
    output.set_stdin_closed(true);
    call_.Send(output);
    return;
  }
  if (written > 0 && !discard_) {
    stdin_window_ += written;
    pb::ExecOutput output;
    output.set_stdin_window_bytes(static_cast<uint32_t>(written));
    call_.Send(output);
  }
  if (!stdin_queue_.empty()) {
    if (!loop_->Watches(stdin_.get())) {
      loop_->Add(stdin_.get(), EPOLLOUT, [self = shared_from_this()](uint32_t) { self->PumpStdin(); });
    }
    return;
  }
  loop_->Remove(stdin_.get());
  if (stdin_closing_) {
    if (tty_) {
      termios settings{};
      const char end_of_file = tcgetattr(stdin_.get(), &settings) == 0 ? static_cast<char>(settings.c_cc[VEOF]) : '\4';
      if (write(stdin_.get(), &end_of_file, 1) != 1) {
        // The terminal's own queue is full, so nobody reads it: the end would not be read either.
      }
    }
    CloseStdin();
  }
}

void Exec::CloseStdin() {
  if (!stdin_) { return; }
  loop_->Remove(stdin_.get());
  stdin_.reset();
  std::string().swap(stdin_queue_);
}

void Exec::SignalGroup(int signal) {
  if (pid_ <= 0) { return; }
  if (terminal_ >= 0) {
    // Job control: what the user sees is the foreground group.
    pid_t foreground = 0;
    if (ioctl(terminal_, TIOCGPGRP, &foreground) == 0 && foreground > 0 && foreground != pid_) { kill(-foreground, signal); }
  }
  kill(-pid_, signal);
}

void Exec::Kill() { SignalGroup(SIGKILL); }

void Exec::OnExited(int wait_status) {
  exited_ = true;
  wait_status_ = wait_status;
  if (timeout_timer_ != 0) {
    loop_->Cancel(timeout_timer_);
    timeout_timer_ = 0;
  }
  CloseStdin();
  Rearm();
  MaybeEnd();
  if (output_[kOut] || output_[kErr]) {
    drain_timer_ = loop_->After(kDrainBeforeKill, [self = shared_from_this()] { self->OnDrainTimer(); });
  }
}

void Exec::OnDrainTimer() {
  drain_timer_ = 0;
  if (drain_ == Drain::kWaiting) {
    if (!detached_) { Kill(); }
    drain_ = Drain::kKilled;
    drain_timer_ = loop_->After(kDrainAfterKill, [self = shared_from_this()] { self->OnDrainTimer(); });
    return;
  }
  // Whoever still holds the output has left the process group. What is in the pipes is delivered as the host takes it; an empty pipe ends it.
  drain_ = Drain::kGivenUp;
  for (Output which : {kOut, kErr}) {
    if (!output_[which]) { continue; }
    int waiting = 0;
    if (ioctl(output_[which].get(), FIONREAD, &waiting) != 0 || waiting == 0 || discard_) {
      output_cut_ = true;
      CloseOutput(which);
    }
  }
  MaybeEnd();
  // A slow host: look again. Only while it owes us window, so an idle machine has no such timer.
  if (output_[kOut] || output_[kErr]) {
    drain_timer_ = loop_->After(kDrainAfterKill, [self = shared_from_this()] { self->OnDrainTimer(); });
  }
}

void Exec::MaybeEnd() {
  if (!exited_ || output_[kOut] || output_[kErr] || pid_ < 0) { return; }
  const auto keep = shared_from_this();
  pb::ExecOutput output;
  pb::ExecEnd* end = output.mutable_end();
  if (timed_out_) {
    end->set_timed_out(true);
  } else if (WIFSIGNALED(wait_status_)) {
    end->set_signal(WTERMSIG(wait_status_));
  } else {
    end->set_exit_code(WEXITSTATUS(wait_status_));
  }
  end->set_duration_ns(static_cast<uint64_t>(std::chrono::nanoseconds(steady_clock::now() - started_at_).count()));
  end->set_output_cut(output_cut_);
  pid_ = -1;
  if (drain_timer_ != 0) { loop_->Cancel(drain_timer_); }
  table_->running_.erase(id_);
  call_.Send(output);
  call_.Finish({});
}

void Exec::Discard() {
  discard_ = true;
  CloseStdin();
  Rearm();
}

void Exec::OnOrphaned() { Discard(); }

void Exec::CloseAll() {
  CloseOutput(kOut);
  CloseOutput(kErr);
  CloseStdin();
}

std::shared_ptr<StreamHandler> ExecTable::NewStream(Call call) { return std::make_shared<Exec>(this, loop_, call); }

Status ExecTable::Signal(uint64_t exec_id, int signal) {
  if (signal < 1 || signal >= NSIG) { return {Code::kInvalidArgument, "signal: not between 1 and 64"}; }
  const auto found = running_.find(exec_id);
  if (found == running_.end()) { return {Code::kNotFound, "no such program, or it has ended"}; }
  found->second->SignalGroup(signal);
  return {};
}

uint32_t ExecTable::KillOrphans() {
  uint32_t killed = 0;
  for (auto& [id, exec] : running_) {
    if (!exec->attached_orphan()) { continue; }
    exec->Kill();
    ++killed;
  }
  return killed;
}

void ExecTable::KillAll() {
  for (auto& [id, exec] : running_) {
    if (!exec->detached()) { exec->Kill(); }
  }
}

}  // namespace forkd::agent
