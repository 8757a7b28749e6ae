// Whole small files at once, by system calls alone: a clone pays for every page of code that it runs first, and iostreams are many.
#ifndef FORKD_GUEST_AGENT_SMALL_FILE_H_
#define FORKD_GUEST_AGENT_SMALL_FILE_H_

#include <cstddef>
#include <string>

namespace forkd::agent {

// The file's content, at most `limit` bytes of it; empty if it cannot be read.
std::string ReadSmallFile(const std::string& path, std::size_t limit = 1 << 20);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_SMALL_FILE_H_
