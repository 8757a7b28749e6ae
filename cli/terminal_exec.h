// `forkctl exec -it`: a program in a sandbox connected to this terminal. The one call that is driven by hand.
#ifndef FORKD_CLI_TERMINAL_EXEC_H_
#define FORKD_CLI_TERMINAL_EXEC_H_

#include <string>

#include <grpcpp/grpcpp.h>

#include "cli/standard_streams.h"
#include "proto/forkd/v1/sandbox.pb.h"

namespace forkd::cli {

enum class StandardInput { kConnected, kClosed };

struct TerminalOutcome {
  grpc::Status status;
  v1::ExecExit exit;  // How the program ended, where `status` is OK.
  int signal = 0;     // Not 0: this signal ended the wait for the program, and `status` is CANCELLED.
};

// Runs `start` and connects the streams; with `start.tty` the terminal on `streams.in` is in raw mode while the program runs, and is restored on
// every way out. SIGWINCH becomes a resize; SIGINT, SIGQUIT, SIGTERM and SIGHUP go to the program, but before it runs, and from the third on, they
// end the call. Blocking. Connects to `address` itself: the signals must be blocked before gRPC starts its threads, or one of those takes them and
// dies. So no other channel may have been made before in this process.
TerminalOutcome RunTerminalExecBlocking(const std::string& address, const v1::ExecStart& start, StandardInput input,
                                        const StandardStreams& streams);

}  // namespace forkd::cli

#endif  // FORKD_CLI_TERMINAL_EXEC_H_
