#include "guest/agent/console.h"

#include <errno.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

namespace forkd::agent {

std::string ErrnoText(int error) {
  char text[128];
  return strerror_r(error, text, sizeof text);
}

void Say(const std::string& line) {
  const std::string whole = "forkd-agent: " + line + "\n";
  if (write(STDERR_FILENO, whole.data(), whole.size()) < 0) {
    // There is nobody else to tell.
  }
}

void Fatal(const std::string& what) {
  const int error = errno;
  Say("fatal: " + what + (error != 0 ? ": " + ErrnoText(error) : ""));
  if (getpid() == 1) { reboot(RB_AUTOBOOT); }
  _exit(70);
}

}  // namespace forkd::agent
