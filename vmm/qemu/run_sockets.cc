#include "vmm/qemu/run_sockets.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace forkd::vmm {
namespace {

// QEMU serves one client at a time; a new daemon's waits here for the old one's to be noticed as gone.
constexpr int kBacklog = 8;

absl::StatusOr<UniqueFd> OpenRunDir(const std::string& run_dir) {
  UniqueFd fd(::open(run_dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) { return ErrnoError(errno, absl::StrCat("open run folder ", Quoted(run_dir))); }
  return fd;
}

absl::StatusOr<sockaddr_un> AddressIn(int dir, const char* name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = absl::StrCat("/proc/self/fd/", dir, "/", name);
  if (path.size() >= sizeof(address.sun_path)) {
    return Error(absl::StatusCode::kInternal, Reason::kInternal, absl::StrCat("socket name ", Quoted(name), " is too long"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

}  // namespace

absl::StatusOr<UniqueFd> ListenInRunDir(const std::string& run_dir, const char* name) {
  FORKD_ASSIGN_OR_RETURN(const UniqueFd dir, OpenRunDir(run_dir));
  FORKD_ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(dir.get(), name));
  if (::unlinkat(dir.get(), name, 0) != 0 && errno != ENOENT) { return ErrnoError(errno, absl::StrCat("remove old socket ", Quoted(name))); }
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) { return ErrnoError(errno, "make a socket"); }
  // Before bind: there is no moment in which others may connect (the new file takes the socket's mode).
  ::fchmod(socket.get(), 0600);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 || ::listen(socket.get(), kBacklog) != 0) {
    return ErrnoError(errno, absl::StrCat("listen on ", Quoted(absl::StrCat(run_dir, "/", name))));
  }
  return socket;
}

absl::StatusOr<UniqueFd> ConnectInRunDir(const std::string& run_dir, const char* name) {
  FORKD_ASSIGN_OR_RETURN(const UniqueFd dir, OpenRunDir(run_dir));
  FORKD_ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(dir.get(), name));
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) { return ErrnoError(errno, "make a socket"); }
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Error(absl::StatusCode::kUnavailable, Reason::kVmmFailed,
                 absl::StrCat(ErrnoError(errno, absl::StrCat("connect to ", Quoted(absl::StrCat(run_dir, "/", name)))).message()));
  }
  return socket;
}

void RemoveRunSockets(const std::string& run_dir) {
  const absl::StatusOr<UniqueFd> dir = OpenRunDir(run_dir);
  if (!dir.ok()) { return; }
  ::unlinkat(dir->get(), kQmpSocketName, 0);
  ::unlinkat(dir->get(), kAgentSocketName, 0);
}

}  // namespace forkd::vmm
