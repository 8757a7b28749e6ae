#include <csignal>
#include <string>
#include <vector>

#include "cli/contract.h"
#include "cli/forkctl.h"

int main(int argc, char** argv) {
  // A reader that goes away (`forkctl ls | head`) is an error of write, not the end of the program in the middle of a call.
  std::signal(SIGPIPE, SIG_IGN);
  return forkd::cli::RunForkctl(forkd::cli::BuiltInContract(), std::vector<std::string>(argv + 1, argv + argc),
                                forkd::cli::StandardStreams());
}
