// forkd-agent: /init of a microVM, or (--serve-fd) an ordinary process on an inherited socket, for tests.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

#include "guest/agent/agent_service.h"
#include "guest/agent/console.h"
#include "guest/agent/connection.h"
#include "guest/agent/event_loop.h"
#include "guest/agent/init.h"
#include "guest/agent/spawn.h"

namespace {

using namespace forkd;
using namespace forkd::agent;

constexpr int kFirstFree = 5;

constexpr const char* kUsage =
    "usage: forkd-agent --serve-fd N --sync HEX [--runner PROGRAM] [--run-dir FOLDER]\n"
    "       (as PID 1: no arguments; see guest/agent/init.h)\n";

// Descriptors 0 to 4 are taken, so that no pipe of ours ever gets a number that a child's descriptors are copied to (spawn.h).
void OccupyLowDescriptors() {
  int fd = 0;
  do { fd = open("/dev/null", O_RDWR | O_CLOEXEC); } while (fd >= 0 && fd < kFirstFree);
  if (fd >= 0) { close(fd); }
}

int Serve(UniqueFd fd, Connection::Kind kind, const ttrpc::SyncToken& token, const AgentService::Options& options) {
  signal(SIGPIPE, SIG_IGN);
  PrepareToSpawn();
  EventLoop loop;
  AgentService service(&loop, options);
  if (options.machine == Preparer::Machine::kOwn) { service.MakeIdentityFiles(); }
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  Connection connection(&loop, std::move(fd), kind, token, [&service](const ttrpc::Request& request, bool streaming, Call call) {
    return service.Dispatch(request, streaming, call);
  });
  loop.Run();
  service.Shutdown();
  // Handlers hold the objects they belong to: nothing is gained by taking all that apart now.
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  if (getpid() == 1) {
    Machine machine = BringUp();
    OccupyLowDescriptors();
    AgentService::Options options;
    options.machine = Preparer::Machine::kOwn;
    return Serve(std::move(machine.port), Connection::Kind::kSerialPort, machine.token, options);
  }
  int serve_fd = -1;
  std::string sync;
  AgentService::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--serve-fd") {
      serve_fd = atoi(argv[i + 1]);
    } else if (flag == "--sync") {
      sync = argv[i + 1];
    } else if (flag == "--runner") {
      options.runner_program = argv[i + 1];
    } else if (flag == "--run-dir") {
      options.run_dir = argv[i + 1];
    } else {
      fputs(kUsage, stderr);
      return 2;
    }
  }
  const auto token = ttrpc::SyncToken::FromHex(sync);
  if (serve_fd < 0 || !token.has_value()) {
    fputs(kUsage, stderr);
    return 2;
  }
  OccupyLowDescriptors();
  // Moved out of their way.
  UniqueFd fd(fcntl(serve_fd, F_DUPFD_CLOEXEC, kFirstFree));
  if (!fd) { Fatal("--serve-fd"); }
  fcntl(serve_fd, F_SETFD, FD_CLOEXEC);
  return Serve(std::move(fd), Connection::Kind::kSocket, *token, options);
}
