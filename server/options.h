// What `forkd-controller` was asked to do: flags, or FORKD_* environment variables.
#ifndef FORKD_SERVER_OPTIONS_H_
#define FORKD_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>

namespace forkd::server {

struct ServeOptions {
  std::string grpc_bind = "127.0.0.1:8890";
  std::string bind;  // REST; empty: 127.0.0.1:8889, and serve without REST where that is taken
  std::string state_dir = "/var/lib/forkd";
  std::string snapshot_root;  // empty: <state_dir>/snapshots
  std::string image_root;  // empty: <state_dir>/images
  std::string vmm = "qemu";
  std::string qemu = "/usr/bin/qemu-system-x86_64";
  std::string accelerator = "auto";  // auto, kvm, tcg
  std::string log_level = "info";
  std::string ready_file;  // written with the bound addresses once calls are served
  int64_t memory_budget_mib = 0;  // 0: four fifths of the host's memory
  int max_sandboxes = 10000;
  std::string standby_default = "auto";  // auto, or children to keep ready for each snapshot
  bool stop_sandboxes_on_exit = false;
};

// Runs the daemon until SIGTERM or SIGINT. The process's exit status.
int Serve(const ServeOptions& options);

// Prints what works on this host and what does not. 0 if sandboxes can run here.
int RunDoctor(const ServeOptions& options, bool json);

}  // namespace forkd::server

#endif  // FORKD_SERVER_OPTIONS_H_
