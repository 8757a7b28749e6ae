#include "guest/agent/small_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace forkd::agent {

std::string ReadSmallFile(const std::string& path, std::size_t limit) {
  std::string content;
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) { return content; }
  char buffer[4096];
  while (content.size() < limit) {
    const ssize_t got = read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) { continue; }
    if (got <= 0) { break; }
    content.append(buffer, static_cast<std::size_t>(got));
  }
  if (content.size() > limit) { content.resize(limit); }
  return content;
}

}  // namespace forkd::agent
