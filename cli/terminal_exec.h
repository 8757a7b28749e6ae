// `forkctl exec -it`: a program in a sandbox connected to this terminal. The one call that is driven by hand.
#ifndef FORKD_CLI_TERMINAL_EXEC_H_
#define FORKD_CLI_TERMINAL_EXEC_H_

#include <string>

#include <grpcpp/grpcpp.h>

#include "cli/standard_streams.h"
#include "proto/forkd/v1/sandbox.pb.h"

namespace forkd::cli {

enum class StandardInput { kConnected, kClosed };

// Runs `start` and connects the streams; with `start.tty` the terminal on `streams.in` is in raw mode meanwhile and is restored on every way out,
// signals included. SIGWINCH becomes a resize; SIGINT, SIGQUIT, SIGTERM and SIGHUP go to the program. On OK `exit` says how it ended.
// Blocking. Connects to `address` itself: the signals must be blocked before gRPC starts its threads, or one of those takes them and dies. So no
// other channel may have been made before in this process.
grpc::Status RunTerminalExecBlocking(const std::string& address, const v1::ExecStart& start, StandardInput input,
                                     const StandardStreams& streams, v1::ExecExit* exit);

}  // namespace forkd::cli

#endif  // FORKD_CLI_TERMINAL_EXEC_H_
