// Owns a file descriptor. An `int fd` parameter elsewhere is borrowed; a UniqueFd by value is taken.
#ifndef FORKD_BASE_UNIQUE_FD_H_
#define FORKD_BASE_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace forkd {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) { reset(std::exchange(other.fd_, -1)); }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  explicit operator bool() const { return valid(); }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    // On Linux the descriptor is gone whatever close answers (close(2), "Dealing with error returns"): never retried.
    if (fd_ >= 0) { ::close(fd_); }
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

}  // namespace forkd

#endif  // FORKD_BASE_UNIQUE_FD_H_
