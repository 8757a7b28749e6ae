#include "cli/terminal_exec.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "cli/generic_call.h"
#include "proto/forkd/v1/sandbox.grpc.pb.h"

namespace forkd::cli {
namespace {

// The contract's largest piece of input.
constexpr size_t kMaxInputBytes = 64 << 10;

// Raw mode while it lives. The signals that would end the program are blocked meanwhile (ForwardedSignals), so the destructor always runs.
class RawMode {
 public:
  explicit RawMode(int fd) : fd_(fd) {
    if (::tcgetattr(fd_, &before_) != 0) {
      return;
    }
    termios raw = before_;
    ::cfmakeraw(&raw);
    raised_ = ::tcsetattr(fd_, TCSADRAIN, &raw) == 0;
  }
  ~RawMode() {
    if (raised_) {
      ::tcsetattr(fd_, TCSADRAIN, &before_);
    }
  }
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;

 private:
  const int fd_;
  termios before_ = {};
  bool raised_ = false;
};

// Blocks the signals that concern the program in the sandbox, and reads them from a descriptor.
class ForwardedSignals {
 public:
  ForwardedSignals() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int number : {SIGWINCH, SIGINT, SIGQUIT, SIGTERM, SIGHUP}) {
      ::sigaddset(&set, number);
    }
    ::pthread_sigmask(SIG_BLOCK, &set, &before_);
    fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  ~ForwardedSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  ForwardedSignals(const ForwardedSignals&) = delete;
  ForwardedSignals& operator=(const ForwardedSignals&) = delete;

  int fd() const { return fd_.get(); }
  // 0: none is waiting.
  int Next() {
    signalfd_siginfo info;
    return ::read(fd_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info)) ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  sigset_t before_;
  UniqueFd fd_;
};

std::optional<v1::TerminalSize> SizeOf(int fd) {
  winsize size = {};
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_row == 0 || size.ws_col == 0) {
    return std::nullopt;
  }
  v1::TerminalSize terminal;
  terminal.set_rows(size.ws_row);
  terminal.set_columns(size.ws_col);
  return terminal;
}

using Stream = grpc::ClientReaderWriter<v1::ExecStreamRequest, v1::ExecStreamResponse>;

// From so many signals on, the person wants out more than the program wants to go on.
constexpr int kSignalsToGiveUp = 3;

// Sends input, resizes and signals on a thread of its own, which is the stream's only writer once the program runs.
class Sender {
 public:
  Sender(Stream* stream, grpc::ClientContext* context, bool tty, StandardInput input, int in, ForwardedSignals* signals)
      : stream_(stream), context_(context), tty_(tty), input_(input), in_(in), signals_(signals), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Sender() { Stop(); }
  Sender(const Sender&) = delete;
  Sender& operator=(const Sender&) = delete;

  // From now on input and signals are the program's.
  void ProgramRuns() {
    running_ = true;
    Wake();
  }
  void Stop() {
    stopped_ = true;
    Wake();
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  // The signal that ended the call, or 0. After Stop.
  int ended_by() const { return ended_by_; }

 private:
  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
  }

  void Run() {
    bool open = true;
    bool input_open = input_ == StandardInput::kConnected;
    bool told_closed = false;
    while (!stopped_) {
      if (running_ && !input_open && !told_closed) {
        v1::ExecStreamRequest close;
        close.mutable_close_stdin();
        told_closed = true;
        open = open && stream_->Write(close);
      }
      if (running_ && resized_early_) {
        resized_early_ = false;
        open = OnSignal(SIGWINCH, open);
      }
      // poll(2) ignores negative descriptors: input is left alone until the program runs, and after its end.
      pollfd polled[] = {{wake_.get(), POLLIN, 0}, {signals_->fd(), POLLIN, 0}, {running_ && open && input_open ? in_ : -1, POLLIN, 0}};
      if (::poll(polled, std::size(polled), -1) < 0 && errno != EINTR) {
        return;
      }
      if (polled[0].revents != 0) {
        uint64_t count = 0;
        [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof(count));
      }
      if (polled[1].revents != 0) {
        open = OnSignal(signals_->Next(), open);
      }
      if (polled[2].revents != 0) {
        open = OnInput(&input_open);
      }
    }
  }

  // False: the stream takes no more.
  bool OnSignal(int number, bool open) {
    v1::ExecStreamRequest message;
    if (number == SIGWINCH) {
      const std::optional<v1::TerminalSize> size = tty_ ? SizeOf(in_) : std::nullopt;
      if (size.has_value()) {
        *message.mutable_resize() = *size;
      }
    } else if (number != 0) {
      if (!running_ || ++signal_count_ >= kSignalsToGiveUp) {
        ended_by_ = number;
        context_->TryCancel();
        return false;
      }
      message.set_signal(number);
    }
    resized_early_ = resized_early_ || (number == SIGWINCH && !running_);
    if (!running_ || message.message_case() == v1::ExecStreamRequest::MESSAGE_NOT_SET) {
      return open;
    }
    return open && stream_->Write(message);
  }

  bool OnInput(bool* input_open) {
    const ssize_t got = ::read(in_, buffer_.data(), buffer_.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
      return true;
    }
    if (got <= 0) {
      *input_open = false;
      return true;
    }
    v1::ExecStreamRequest message;
    message.set_stdin(buffer_.data(), static_cast<size_t>(got));
    return stream_->Write(message);
  }

  Stream* const stream_;
  grpc::ClientContext* const context_;
  const bool tty_;
  const StandardInput input_;
  const int in_;
  ForwardedSignals* const signals_;
  const UniqueFd wake_;
  std::string buffer_ = std::string(kMaxInputBytes, '\0');
  int signal_count_ = 0;
  bool resized_early_ = false;
  int ended_by_ = 0;
  std::atomic<bool> running_ = false;
  std::atomic<bool> stopped_ = false;
  std::thread thread_;
};

}  // namespace

TerminalOutcome RunTerminalExecBlocking(const std::string& address, const v1::ExecStart& start, StandardInput input,
                                        const StandardStreams& streams) {
  TerminalOutcome outcome;
  // Before gRPC makes a thread: threads inherit the mask.
  ForwardedSignals signals;
  if (signals.fd() < 0) {
    outcome.status = {grpc::StatusCode::RESOURCE_EXHAUSTED, "no file descriptors are left for the terminal"};
    return outcome;
  }
  const std::unique_ptr<v1::SandboxService::Stub> stub = v1::SandboxService::NewStub(Connect(address));
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream(stub->ExecStream(&context));
  Sender sender(stream.get(), &context, start.tty(), input, streams.in, &signals);
  v1::ExecStreamRequest first;
  *first.mutable_start() = start;
  if (start.tty()) {
    if (const std::optional<v1::TerminalSize> size = SizeOf(streams.in); size.has_value()) {
      *first.mutable_start()->mutable_size() = *size;
    }
  }
  stream->Write(first);  // If it fails, so does Read, and Finish says why.

  v1::ExecStreamResponse message;
  std::optional<RawMode> raw;
  bool exited = false;
  bool output_lost = false;
  while (!output_lost && stream->Read(&message)) {
    switch (message.message_case()) {
      case v1::ExecStreamResponse::kStarted:
        // Raw only once the program runs: until then ^C means this program.
        if (start.tty()) {
          raw.emplace(streams.in);
        }
        sender.ProgramRuns();
        break;
      case v1::ExecStreamResponse::kStdout:
        output_lost = !WriteAllBlocking(streams.out, message.stdout());
        break;
      case v1::ExecStreamResponse::kStderr:
        output_lost = !WriteAllBlocking(streams.err, message.stderr());
        break;
      case v1::ExecStreamResponse::kExit:
        outcome.exit = message.exit();
        exited = true;
        break;
      case v1::ExecStreamResponse::MESSAGE_NOT_SET:
        break;  // Of a newer daemon.
    }
  }
  if (output_lost) {
    // Nobody reads: the program should not run on unseen.
    context.TryCancel();
  }
  sender.Stop();
  raw.reset();
  outcome.signal = exited ? 0 : sender.ended_by();
  outcome.status = stream->Finish();
  if (output_lost) {
    outcome.status = {grpc::StatusCode::ABORTED, "standard output cannot be written"};
  } else if (outcome.status.ok() && !exited) {
    outcome.status = {grpc::StatusCode::INTERNAL, "the stream ended without the program's exit"};
  }
  return outcome;
}

}  // namespace forkd::cli
