#include "guest/agent/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "guest/agent/console.h"
#include "guest/agent/spawn.h"

namespace forkd::agent {
namespace {

namespace pb = ::forkd::agent::v1;

constexpr uint8_t kEval = 1;
constexpr uint8_t kReady = 128;
constexpr uint8_t kResult = 129;
constexpr uint8_t kHasValue = 1;
constexpr uint8_t kHasError = 2;
constexpr uint8_t kValueTruncated = 4;
constexpr uint8_t kThreadsRun = 8;

constexpr std::size_t kMaxMessageBytes = 3 * 1024 * 1024;
constexpr std::size_t kMaxCodeBytes = 1024 * 1024;
constexpr uint32_t kMaxOutputBytes = 1024 * 1024;
constexpr std::size_t kMaxErrorBytes = 64 * 1024;
constexpr std::size_t kMaxQueue = 64;
// Importing NumPy under software emulation on a loaded machine takes tens of seconds.
constexpr std::chrono::seconds kStartLimit{300};
constexpr std::chrono::seconds kReseedLimit{10};
// The runner's agreed signal; far from those that programs use.
int ReseedSignal() { return SIGRTMIN + 7; }

void Append32(uint32_t value, std::string* out) {
  for (int shift = 24; shift >= 0; shift -= 8) { out->push_back(static_cast<char>(value >> shift & 0xff)); }
}

uint32_t Load32(const char* p) {
  const auto* b = reinterpret_cast<const unsigned char*>(p);
  return uint32_t{b[0]} << 24 | uint32_t{b[1]} << 16 | uint32_t{b[2]} << 8 | uint32_t{b[3]};
}

std::string Message(uint8_t type, const std::string& body) {
  std::string message;
  Append32(static_cast<uint32_t>(body.size() + 1), &message);
  message.push_back(static_cast<char>(type));
  return message + body;
}

// Takes a length-prefixed field from the front; false if it is not whole.
bool TakeField(std::string_view* in, std::string* field) {
  if (in->size() < 4) { return false; }
  const uint32_t size = Load32(in->data());
  in->remove_prefix(4);
  if (size > in->size()) { return false; }
  field->assign(in->substr(0, size));
  in->remove_prefix(size);
  return true;
}

std::string DescribeEnd(int wait_status) {
  if (WIFSIGNALED(wait_status)) { return "killed by signal " + std::to_string(WTERMSIG(wait_status)); }
  return "exited with code " + std::to_string(WEXITSTATUS(wait_status));
}

// proto3 strings must be UTF-8; cutting may have split a character, and the runner is not trusted to send any.
std::string ValidUtf8(std::string text, std::size_t limit) {
  if (text.size() > limit) { text.resize(limit); }
  std::string out;
  std::size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    std::size_t length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : (lead & 0xf0) == 0xe0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
    bool good = length > 0 && i + length <= text.size();
    for (std::size_t k = 1; good && k < length; ++k) { good = (static_cast<unsigned char>(text[i + k]) & 0xc0) == 0x80; }
    if (good && length >= 3) {
      const auto second = static_cast<unsigned char>(text[i + 1]);
      good = !(lead == 0xe0 && second < 0xa0) && !(lead == 0xed && second >= 0xa0) && !(lead == 0xf0 && second < 0x90) && !(lead == 0xf4 && second >= 0x90);
    }
    if (good) {
      out.append(text, i, length);
      i += length;
    } else {
      out += '?';
      ++i;
    }
  }
  return out;
}

}  // namespace

bool Runner::Present() const { return !program_.empty() && access(program_.c_str(), X_OK) == 0; }

pb::RunnerState Runner::state() const {
  if (pid_ < 0) { return Present() ? pb::RUNNER_STATE_STOPPED : pb::RUNNER_STATE_ABSENT; }
  if (!ready_) { return pb::RUNNER_STATE_STARTING; }
  return busy_ ? pb::RUNNER_STATE_BUSY : pb::RUNNER_STATE_READY;
}

void Runner::Eval(const pb::EvalRequest& request, EvalDone done) {
  if (!Present()) {
    done({Code::kFailedPrecondition, "this image has no runner"}, {});
    return;
  }
  if (request.code().size() > kMaxCodeBytes) {
    done({Code::kInvalidArgument, "code: more than 1 MiB"}, {});
    return;
  }
  if (request.max_output_bytes() > kMaxOutputBytes) {
    done({Code::kInvalidArgument, "max_output_bytes: more than 1 MiB"}, {});
    return;
  }
  if (queue_.size() >= kMaxQueue) {
    done({Code::kResourceExhausted, "64 evaluations wait already"}, {});
    return;
  }
  Job job;
  job.max_output_bytes = request.max_output_bytes() > 0 ? request.max_output_bytes() : kMaxOutputBytes;
  std::string body;
  Append32(job.max_output_bytes, &body);
  job.message = Message(kEval, body + request.code());
  job.done_eval = std::move(done);
  Enqueue(std::move(job), std::chrono::nanoseconds(std::min<uint64_t>(request.timeout_ns(), INT64_MAX)));
}

void Runner::Reseed(const std::string& entropy, ReseedDone done) {
  if (pid_ < 0) {
    done("");
    return;
  }
  if (ready_ && !busy_ && !reseeding_ && !has_threads_) {
    owed_entropy_ = entropy;
    done("");
    return;
  }
  ReseedNow(entropy, std::move(done));
}

void Runner::ReseedNow(const std::string& entropy, ReseedDone done) {
  PendingReseed pending;
  pending.entropy = entropy;
  pending.done = std::move(done);
  pending.id = next_job_++;
  pending.timer = loop_->After(kReseedLimit, [this, id = pending.id] { FinishReseed(id, "the runner did not do it in time: its code does not let signals through"); });
  reseeds_.push_back(std::move(pending));
  // One that starts is asked when it is ready: it has imported, and so seeded, what it had to.
  if (ready_) { SendReseed(reseeds_.back().id, entropy); }
}

void Runner::ReseedBeforeNext() {
  reseeding_ = true;
  ReseedNow(owed_entropy_, [this](const std::string& error) {
    if (!reseeding_) { return; }  // The runner is gone.
    reseeding_ = false;
    if (error.empty()) {
      owed_entropy_.clear();
      Next();
      return;
    }
    // Code that would draw its siblings' numbers must not run: the evaluation that came gets the blame and a new runner.
    busy_ = !queue_.empty();
    Lost("the runner could not be reseeded after a fork and was killed: " + error, false);
  });
}

void Runner::SendReseed(uint64_t id, const std::string& entropy) {
  if (send(reseed_socket_.get(), entropy.data(), entropy.size(), MSG_NOSIGNAL | MSG_DONTWAIT) != static_cast<ssize_t>(entropy.size())) {
    FinishReseed(id, "send to the runner: " + ErrnoText(errno));
    return;
  }
  // To the main thread, which alone runs Python's handlers and must not sleep on in a system call.
  syscall(SYS_tgkill, pid_, pid_, ReseedSignal());
}

void Runner::OnReseeded() {
  char answer[4096];
  while (reseed_socket_) {
    const ssize_t got = recv(reseed_socket_.get(), answer, sizeof answer, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) { continue; }
    if (got == 0) { loop_->Remove(reseed_socket_.get()); }
    if (got <= 0) { return; }
    if (reseeds_.empty()) { continue; }
    const bool good = got == 1 && answer[0] == 0;
    FinishReseed(reseeds_.front().id, good ? "" : ValidUtf8(std::string(answer + 1, static_cast<std::size_t>(got) - 1), 512));
  }
}

void Runner::FinishReseed(uint64_t id, const std::string& error) {
  const auto found = std::find_if(reseeds_.begin(), reseeds_.end(), [id](const PendingReseed& pending) { return pending.id == id; });
  if (found == reseeds_.end()) { return; }
  PendingReseed pending = std::move(*found);
  reseeds_.erase(found);
  loop_->Cancel(pending.timer);
  pending.done(error);
}

void Runner::WhenReady(ReadyDone done) {
  if (!Present()) {
    done({Code::kFailedPrecondition, "this image has no runner"}, "");
    return;
  }
  Job job;
  job.done_ready = std::move(done);
  Enqueue(std::move(job), kStartLimit);
}

void Runner::Enqueue(Job job, std::chrono::nanoseconds limit) {
  job.id = next_job_++;
  if (limit.count() > 0) {
    job.timer = loop_->After(limit, [this, id = job.id] { OnTimeout(id); });
  }
  queue_.push_back(std::move(job));
  Next();
}

Status Runner::Start() {
  int sockets[2];
  int out[2];
  int err[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) { return {Code::kUnavailable, "socketpair: " + ErrnoText(errno)}; }
  UniqueFd ours(sockets[0]);
  UniqueFd theirs(sockets[1]);
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) { return {Code::kUnavailable, "socketpair: " + ErrnoText(errno)}; }
  UniqueFd our_reseed(sockets[0]);
  UniqueFd their_reseed(sockets[1]);
  if (pipe2(out, O_CLOEXEC) != 0) { return {Code::kUnavailable, "pipe: " + ErrnoText(errno)}; }
  UniqueFd out_read(out[0]);
  UniqueFd out_write(out[1]);
  if (pipe2(err, O_CLOEXEC) != 0) { return {Code::kUnavailable, "pipe: " + ErrnoText(errno)}; }
  UniqueFd err_read(err[0]);
  UniqueFd err_write(err[1]);
  UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null) { return {Code::kUnavailable, "/dev/null: " + ErrnoText(errno)}; }
  SpawnSpec spec;
  spec.argv = {program_};
  spec.user = FindUser("").value();
  if (geteuid() != 0) {
    spec.user.uid = geteuid();
    spec.user.gid = getegid();
  }
  spec.env = MakeEnvironment(spec.user, false, {});
  spec.stdio[0] = null.get();
  spec.stdio[1] = out_write.get();
  spec.stdio[2] = err_write.get();
  spec.extra_fds = {theirs.get(), their_reseed.get()};
  const auto [pid, failure] = Spawn(spec);
  if (pid < 0) { return {Code::kUnavailable, "start the runner: " + failure.message}; }
  pid_ = pid;
  ready_ = false;
  busy_ = false;
  info_.clear();
  in_.clear();
  out_.clear();
  socket_ = std::move(ours);
  reseed_socket_ = std::move(our_reseed);
  output_[0] = std::move(out_read);
  output_[1] = std::move(err_read);
  for (int fd : {socket_.get(), output_[0].get(), output_[1].get()}) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }
  loop_->Add(socket_.get(), EPOLLIN, [this](uint32_t) { OnSocket(); });
  loop_->Add(reseed_socket_.get(), EPOLLIN, [this](uint32_t) { OnReseeded(); });
  start_timer_ = loop_->After(kStartLimit, [this] {
    start_timer_ = 0;
    Lost("the runner was not ready in time and was killed", false);
  });
  for (int which : {0, 1}) {
    loop_->Add(output_[which].get(), EPOLLIN, [this, which](uint32_t) { DrainOutput(which); });
  }
  loop_->OnExit(pid_, [this, pid = pid_](int status) {
    if (pid != pid_) { return; }
    OnSocket();  // What it managed to say.
    if (pid == pid_) { Lost("the runner " + DescribeEnd(status), false); }
  });
  return {};
}

void Runner::Stop() {
  if (pid_ < 0) { return; }
  kill(-pid_, SIGKILL);
  pid_ = -1;
  ready_ = false;
  busy_ = false;
  reseeding_ = false;
  has_threads_ = false;
  owed_entropy_.clear();
  if (start_timer_ != 0) { loop_->Cancel(start_timer_); }
  start_timer_ = 0;
  loop_->Remove(socket_.get());
  socket_.reset();
  loop_->Remove(reseed_socket_.get());
  reseed_socket_.reset();
  for (UniqueFd& output : output_) {
    if (output) { loop_->Remove(output.get()); }
    output.reset();
  }
}

void Runner::Kill() { Stop(); }

void Runner::Lost(const std::string& why, bool timed_out) {
  const bool was_busy = busy_;
  const bool was_ready = ready_;
  pb::EvalResponse response;
  if (was_busy) {
    for (int which : {0, 1}) { DrainOutput(which); }
    response.set_error(timed_out ? "TimeoutError: the code ran longer than it may; the runner was killed" : "RunnerError: " + why);
    response.set_timed_out(timed_out);
    response.set_runner_restarted(true);
  }
  Stop();
  Say(why);
  // Whatever it had drawn went with it; the next one seeds itself.
  while (!reseeds_.empty()) { FinishReseed(reseeds_.front().id, ""); }
  if (was_busy) {
    Job job = std::move(queue_.front());
    queue_.pop_front();
    if (was_ready) {
      const Status started = Start();
      if (!started.ok()) { Say(started.message); }
    }
    Finish(job, {}, std::move(response));
  } else if (!was_ready) {
    // It never came up: what waits for it would wait in vain.
    std::deque<Job> failed;
    failed.swap(queue_);
    for (Job& job : failed) { Finish(job, {Code::kUnavailable, why}, {}); }
  }
  Next();
}

void Runner::Finish(Job& job, const Status& status, pb::EvalResponse response) {
  if (job.timer != 0) { loop_->Cancel(job.timer); }
  if (job.done_eval) {
    for (int which : {0, 1}) {
      (which == 0 ? response.mutable_stdout_data() : response.mutable_stderr_data())->swap(captured_[which]);
      std::string().swap(captured_[which]);
    }
    response.set_stdout_truncated(captured_cut_[0]);
    response.set_stderr_truncated(captured_cut_[1]);
    job.done_eval(status, std::move(response));
  } else if (job.done_ready) {
    job.done_ready(status, info_);
  }
}

void Runner::OnTimeout(uint64_t job_id) {
  const auto found = std::find_if(queue_.begin(), queue_.end(), [job_id](const Job& job) { return job.id == job_id; });
  if (found == queue_.end()) { return; }
  found->timer = 0;
  if (busy_ && found == queue_.begin()) {
    Lost("the runner was killed after its time limit", true);
    return;
  }
  Job job = std::move(*found);
  queue_.erase(found);
  if (!job.done_eval) {
    Finish(job, {Code::kUnavailable, "the runner was not ready in time"}, {});
    return;
  }
  pb::EvalResponse response;
  response.set_error("TimeoutError: the time limit passed before the runner came to this code");
  response.set_timed_out(true);
  job.done_eval({}, std::move(response));
}

void Runner::Next() {
  while (!queue_.empty() && !busy_ && !reseeding_) {
    if (pid_ < 0) {
      const Status started = Start();
      if (!started.ok()) {
        Job job = std::move(queue_.front());
        queue_.pop_front();
        Finish(job, started, {});
        continue;
      }
    }
    if (!ready_) { return; }
    Job& job = queue_.front();
    if (job.done_ready) {
      Job ready = std::move(job);
      queue_.pop_front();
      Finish(ready, {}, {});
      continue;
    }
    if (!owed_entropy_.empty()) {
      ReseedBeforeNext();
      continue;
    }
    busy_ = true;
    began_ = std::chrono::steady_clock::now();
    // What came between evaluations (a background thread's output) belongs to none.
    for (int which : {0, 1}) {
      DrainOutput(which);
      captured_[which].clear();
      captured_cut_[which] = false;
    }
    out_ = std::move(job.message);
    Write();
    return;
  }
}

void Runner::Write() {
  while (!out_.empty()) {
    const ssize_t put = send(socket_.get(), out_.data(), out_.size(), MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) { continue; }
    if (put <= 0) { break; }
    out_.erase(0, static_cast<std::size_t>(put));
  }
  const uint32_t events = out_.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT;
  loop_->Remove(socket_.get());
  loop_->Add(socket_.get(), events, [this](uint32_t got) {
    if ((got & EPOLLOUT) != 0) { Write(); }
    if ((got & ~uint32_t{EPOLLOUT}) != 0) { OnSocket(); }
  });
  if (out_.empty()) { std::string().swap(out_); }
}

void Runner::DrainOutput(int which) {
  static char buffer[16 * 1024];
  while (output_[which]) {
    const ssize_t got = read(output_[which].get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) { continue; }
    if (got == 0) {
      loop_->Remove(output_[which].get());
      output_[which].reset();
    }
    if (got <= 0) { return; }
    if (!busy_ || queue_.empty()) { continue; }
    const std::size_t room = queue_.front().max_output_bytes - std::min<std::size_t>(queue_.front().max_output_bytes, captured_[which].size());
    const std::size_t take = std::min(room, static_cast<std::size_t>(got));
    captured_[which].append(buffer, take);
    if (take < static_cast<std::size_t>(got)) { captured_cut_[which] = true; }
  }
}

void Runner::OnSocket() {
  static char buffer[16 * 1024];
  const pid_t pid = pid_;
  while (pid_ == pid && socket_) {
    const ssize_t got = recv(socket_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) { continue; }
    if (got == 0) {
      // Its process ends, or it has closed its descriptor: the one as useless as the other. The reaper tells how it ended, if it has.
      loop_->Remove(socket_.get());
      kill(-pid_, SIGKILL);
      return;
    }
    if (got < 0) { return; }
    in_.append(buffer, static_cast<std::size_t>(got));
    while (pid_ == pid && in_.size() >= 4) {
      const uint32_t size = Load32(in_.data());
      if (size < 1 || size > kMaxMessageBytes) {
        Lost("the runner sent a malformed message and was killed", false);
        return;
      }
      if (in_.size() < 4 + size) { break; }
      const auto type = static_cast<uint8_t>(in_[4]);
      const std::string body = in_.substr(5, size - 1);
      in_.erase(0, 4 + size);
      OnMessage(type, body);
    }
    if (in_.empty() && in_.capacity() > 4096) { std::string().swap(in_); }
  }
}

void Runner::OnMessage(uint8_t type, const std::string& body) {
  if (type == kReady && !ready_) {
    ready_ = true;
    info_ = ValidUtf8(body, 256);
    loop_->Cancel(start_timer_);
    start_timer_ = 0;
    std::vector<std::pair<uint64_t, std::string>> waiting;
    for (const PendingReseed& pending : reseeds_) { waiting.emplace_back(pending.id, pending.entropy); }
    for (const auto& [id, entropy] : waiting) { SendReseed(id, entropy); }
    Next();
    return;
  }
  pb::EvalResponse response;
  bool good = type == kResult && busy_ && !queue_.empty();
  if (good) {
    std::string_view rest(body);
    std::string value;
    std::string error;
    std::string traceback;
    good = !rest.empty();
    const uint8_t flags = good ? static_cast<uint8_t>(rest[0]) : 0;
    if (good) { rest.remove_prefix(1); }
    good = good && TakeField(&rest, &value) && TakeField(&rest, &error) && TakeField(&rest, &traceback);
    if ((flags & kHasValue) != 0) { response.set_value(ValidUtf8(std::move(value), queue_.front().max_output_bytes)); }
    if ((flags & kHasError) != 0) { response.set_error(ValidUtf8(std::move(error), kMaxErrorBytes)); }
    has_threads_ = (flags & kThreadsRun) != 0;
    response.set_value_truncated((flags & kValueTruncated) != 0);
    response.set_traceback(ValidUtf8(std::move(traceback), kMaxErrorBytes));
    response.set_duration_ns(static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - began_).count()));
  }
  if (!good) {
    Lost("the runner sent a message that makes no sense here and was killed", false);
    return;
  }
  for (int which : {0, 1}) { DrainOutput(which); }
  Job job = std::move(queue_.front());
  queue_.pop_front();
  busy_ = false;
  Finish(job, {}, std::move(response));
  Next();
}

}  // namespace forkd::agent
