// Runs forkctl inside the test and keeps what it wrote.
#ifndef FORKD_CLI_TESTING_RUN_CAPTURED_H_
#define FORKD_CLI_TESTING_RUN_CAPTURED_H_

#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "cli/forkctl.h"

namespace forkd::cli {

struct Captured {
  int exit = -1;
  std::string out;
  std::string err;
};

// A memory file with `content`, read from its start.
inline UniqueFd MemoryFile(const std::string& content) {
  UniqueFd file(::memfd_create("forkctl-test", MFD_CLOEXEC));
  [[maybe_unused]] const ssize_t written = ::write(file.get(), content.data(), content.size());
  ::lseek(file.get(), 0, SEEK_SET);
  return file;
}

inline std::string ContentOf(const UniqueFd& file) {
  std::string content(static_cast<size_t>(::lseek(file.get(), 0, SEEK_END)), '\0');
  [[maybe_unused]] const ssize_t got = ::pread(file.get(), content.data(), content.size(), 0);
  return content;
}

inline Captured RunCaptured(const google::protobuf::FileDescriptorSet& contract, const std::vector<std::string>& arguments,
                            const std::string& input = "") {
  const UniqueFd in = MemoryFile(input);
  const UniqueFd out = MemoryFile("");
  const UniqueFd err = MemoryFile("");
  Captured captured;
  captured.exit = RunForkctl(contract, arguments, StandardStreams{.in = in.get(), .out = out.get(), .err = err.get()});
  captured.out = ContentOf(out);
  captured.err = ContentOf(err);
  return captured;
}

}  // namespace forkd::cli

#endif  // FORKD_CLI_TESTING_RUN_CAPTURED_H_
