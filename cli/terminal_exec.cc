#include "cli/terminal_exec.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

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

// Sends input, resizes and signals until `stop` becomes readable or the stream ends. The only writer of `stream`.
void SendUntilStopped(Stream* stream, bool tty, StandardInput input, int in, ForwardedSignals* signals, int stop) {
  std::string buffer(kMaxInputBytes, '\0');
  // poll(2) ignores negative descriptors: so input is left out once it has ended.
  pollfd polled[] = {{stop, POLLIN, 0}, {signals->fd(), POLLIN, 0}, {input == StandardInput::kConnected ? in : -1, POLLIN, 0}};
  if (input == StandardInput::kClosed) {
    v1::ExecStreamRequest close;
    close.mutable_close_stdin();
    if (!stream->Write(close)) {
      return;
    }
  }
  while (true) {
    if (::poll(polled, std::size(polled), -1) < 0) {
      if (errno == EINTR) {
        continue;
      }
      return;
    }
    if (polled[0].revents != 0) {
      return;
    }
    if (polled[1].revents != 0) {
      const int number = signals->Next();
      v1::ExecStreamRequest message;
      if (number == SIGWINCH) {
        const std::optional<v1::TerminalSize> size = tty ? SizeOf(in) : std::nullopt;
        if (size.has_value()) {
          *message.mutable_resize() = *size;
        }
      } else if (number != 0) {
        message.set_signal(number);
      }
      if (message.message_case() != v1::ExecStreamRequest::MESSAGE_NOT_SET && !stream->Write(message)) {
        return;
      }
    }
    if (polled[2].revents != 0) {
      const ssize_t got = ::read(in, buffer.data(), buffer.size());
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
        continue;
      }
      v1::ExecStreamRequest message;
      if (got <= 0) {
        message.mutable_close_stdin();
        polled[2].fd = -1;
      } else {
        message.set_stdin(buffer.data(), static_cast<size_t>(got));
      }
      if (!stream->Write(message)) {
        return;
      }
    }
  }
}

}  // namespace

grpc::Status RunTerminalExecBlocking(const std::string& address, const v1::ExecStart& start, StandardInput input,
                                     const StandardStreams& streams, v1::ExecExit* exit) {
  // Before gRPC makes a thread: threads inherit the mask.
  ForwardedSignals signals;
  const UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (signals.fd() < 0 || !stop.valid()) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, "no file descriptors are left for the terminal"};
  }

  const std::unique_ptr<v1::SandboxService::Stub> stub = v1::SandboxService::NewStub(Connect(address));
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream(stub->ExecStream(&context));
  v1::ExecStreamRequest first;
  *first.mutable_start() = start;
  if (start.tty()) {
    if (const std::optional<v1::TerminalSize> size = SizeOf(streams.in); size.has_value()) {
      *first.mutable_start()->mutable_size() = *size;
    }
  }
  stream->Write(first);

  v1::ExecStreamResponse message;
  bool exited = false;
  bool output_lost = false;
  {
    std::optional<RawMode> raw;
    std::thread sender;
    // Raw only once the program runs: until then ^C means this program.
    const auto connect = [&] {
      if (start.tty() && !raw.has_value()) {
        raw.emplace(streams.in);
      }
      sender = std::thread([&] { SendUntilStopped(stream.get(), start.tty(), input, streams.in, &signals, stop.get()); });
    };
    while (stream->Read(&message)) {
      switch (message.message_case()) {
        case v1::ExecStreamResponse::kStarted:
          if (!sender.joinable()) {
            connect();
          }
          break;
        case v1::ExecStreamResponse::kStdout:
          output_lost |= !WriteAllBlocking(streams.out, message.stdout());
          break;
        case v1::ExecStreamResponse::kStderr:
          output_lost |= !WriteAllBlocking(streams.err, message.stderr());
          break;
        case v1::ExecStreamResponse::kExit:
          *exit = message.exit();
          exited = true;
          break;
        case v1::ExecStreamResponse::MESSAGE_NOT_SET:
          break;  // Of a newer daemon.
      }
      if (output_lost) {
        // Nobody reads: the program should not run on unseen.
        context.TryCancel();
        break;
      }
    }
    if (sender.joinable()) {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t woken = ::write(stop.get(), &one, sizeof(one));
      sender.join();
    }
  }
  const grpc::Status status = stream->Finish();
  if (output_lost) {
    return {grpc::StatusCode::ABORTED, "standard output cannot be written"};
  }
  if (status.ok() && !exited) {
    return {grpc::StatusCode::INTERNAL, "the stream ended without the program's exit"};
  }
  return status;
}

}  // namespace forkd::cli
