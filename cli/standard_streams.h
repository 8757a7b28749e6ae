// The three descriptors a program talks through, borrowed.
#ifndef FORKD_CLI_STANDARD_STREAMS_H_
#define FORKD_CLI_STANDARD_STREAMS_H_

#include <unistd.h>

#include "absl/strings/string_view.h"

namespace forkd::cli {

struct StandardStreams {
  int in = STDIN_FILENO;
  int out = STDOUT_FILENO;
  int err = STDERR_FILENO;
};

// Writes all of `bytes`, waiting as long as the reader makes it. False if the reader is gone or the device full. Blocking.
bool WriteAllBlocking(int fd, absl::string_view bytes);

}  // namespace forkd::cli

#endif  // FORKD_CLI_STANDARD_STREAMS_H_
