#include "guest/agent/warmup.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "guest/agent/console.h"
#include "guest/agent/spawn.h"

namespace forkd::agent {
namespace {

namespace pb = ::forkd::agent::v1;
using std::chrono::steady_clock;

constexpr std::size_t kKeptOutputBytes = 64 * 1024;

class Warmup : public std::enable_shared_from_this<Warmup> {
 public:
  Warmup(EventLoop* loop, Runner* runner, const pb::WarmupRequest& request, Call call)
      : loop_(loop), runner_(runner), request_(request), call_(call) {}

  void Start() {
    if (!request_.start_runner() || !runner_->Present()) {
      RunCommand();
      return;
    }
    runner_->WhenReady([self = shared_from_this()](const Status& status, const std::string& info) {
      if (!status.ok()) {
        self->call_.Finish(status);
        return;
      }
      self->response_.set_runner_info(info);
      self->RunCommand();
    });
  }

 private:
  void RunCommand() {
    if (request_.argv_size() == 0 || request_.argv(0).empty()) {
      RunCode();
      return;
    }
    began_ = steady_clock::now();
    SpawnSpec spec;
    spec.argv.assign(request_.argv().begin(), request_.argv().end());
    spec.user = FindUser("").value();
    spec.env = MakeEnvironment(spec.user, false, {});
    UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
    int ends[2];
    if (!null || pipe2(ends, O_CLOEXEC) != 0) {
      call_.Finish({Code::kUnavailable, "open the command's streams: " + ErrnoText(errno)});
      return;
    }
    output_ = UniqueFd(ends[0]);
    UniqueFd write_end(ends[1]);
    fcntl(output_.get(), F_SETFL, fcntl(output_.get(), F_GETFL) | O_NONBLOCK);
    spec.stdio[0] = null.get();
    spec.stdio[1] = spec.stdio[2] = write_end.get();
    const auto [pid, failure] = Spawn(spec);
    if (pid < 0) {
      output_.reset();
      response_.mutable_command_end()->mutable_exec_error()->set_reason(failure.reason);
      response_.mutable_command_end()->mutable_exec_error()->set_message(failure.message);
      call_.Reply(response_);
      return;
    }
    pid_ = pid;
    loop_->Add(output_.get(), EPOLLIN, [self = shared_from_this()](uint32_t) { self->ReadOutput(); });
    loop_->OnExit(pid_, [self = shared_from_this()](int status) { self->OnExited(status); });
    if (request_.timeout_ns() > 0) {
      timer_ = loop_->After(std::chrono::nanoseconds(std::min<uint64_t>(request_.timeout_ns(), INT64_MAX)), [self = shared_from_this()] {
        self->timer_ = 0;
        self->timed_out_ = true;
        kill(-self->pid_, SIGKILL);
      });
    }
  }

  void ReadOutput() {
    static char buffer[16 * 1024];
    while (output_) {
      const ssize_t got = read(output_.get(), buffer, sizeof buffer);
      if (got < 0 && errno == EINTR) { continue; }
      if (got < 0) { return; }
      if (got == 0) {
        CloseOutput();
        return;
      }
      std::string* kept = response_.mutable_command_output();
      kept->append(buffer, static_cast<std::size_t>(got));
      if (kept->size() > kKeptOutputBytes) { kept->erase(0, kept->size() - kKeptOutputBytes); }
    }
  }

  void CloseOutput() {
    if (!output_) { return; }
    loop_->Remove(output_.get());
    output_.reset();
  }

  void OnExited(int wait_status) {
    if (timer_ != 0) { loop_->Cancel(timer_); }
    // What it left in its group would only go on into every clone's output; a service that is wanted leaves the group.
    ReadOutput();
    CloseOutput();
    pb::ExecEnd* end = response_.mutable_command_end();
    if (timed_out_) {
      end->set_timed_out(true);
    } else if (WIFSIGNALED(wait_status)) {
      end->set_signal(WTERMSIG(wait_status));
    } else {
      end->set_exit_code(WEXITSTATUS(wait_status));
    }
    end->set_duration_ns(static_cast<uint64_t>(std::chrono::nanoseconds(steady_clock::now() - began_).count()));
    if (end->exit_code() != 0 || end->outcome_case() != pb::ExecEnd::kExitCode) {
      call_.Reply(response_);
      return;
    }
    RunCode();
  }

  void RunCode() {
    if (request_.code().empty()) {
      call_.Reply(response_);
      return;
    }
    pb::EvalRequest eval;
    eval.set_code(request_.code());
    eval.set_timeout_ns(request_.timeout_ns());
    runner_->Eval(eval, [self = shared_from_this()](const Status& status, const pb::EvalResponse& response) {
      if (!status.ok()) {
        self->call_.Finish(status);
        return;
      }
      if (response.has_error()) { self->response_.set_code_error(response.error()); }
      self->call_.Reply(self->response_);
    });
  }

  EventLoop* loop_;
  Runner* runner_;
  pb::WarmupRequest request_;
  Call call_;
  pb::WarmupResponse response_;
  pid_t pid_ = -1;
  UniqueFd output_;
  EventLoop::TimerId timer_ = 0;
  bool timed_out_ = false;
  steady_clock::time_point began_;
};

}  // namespace

void StartWarmup(EventLoop* loop, Runner* runner, const pb::WarmupRequest& request, Call call) {
  std::make_shared<Warmup>(loop, runner, request, call)->Start();
}

}  // namespace forkd::agent
