// forkd-controller: the daemon (`serve`), and what must work without one (`doctor`, `version`).
#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/fault_point.h"
#include "base/version.h"
#include "server/options.h"

int main(int argc, char** argv) {
  forkd::CrashAtFaultPointFromEnvironment();
  forkd::server::ServeOptions options;
  CLI::App app("forkd-controller: boots, snapshots, forks and branches microVMs");
  app.require_subcommand(1);

  CLI::App* serve = app.add_subcommand("serve", "run the daemon");
  serve->add_option("--bind", options.bind, "address and port of the REST gateway (default 127.0.0.1:8889)")->envname("FORKD_BIND");
  serve->add_option("--grpc-bind", options.grpc_bind, "address and port of the gRPC services")->envname("FORKD_GRPC_BIND")->capture_default_str();
  serve->add_option("--snapshot-root", options.snapshot_root, "folder of snapshots (default STATE_DIR/snapshots)")->envname("FORKD_SNAPSHOT_ROOT");
  serve->add_option("--log-level", options.log_level, "trace, debug, info, warn or error")
      ->envname("FORKD_LOG_LEVEL")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  serve->add_option("--memory-budget-mib", options.memory_budget_mib, "most memory for snapshots and sandboxes; 0: four fifths of the host's")
      ->envname("FORKD_MEMORY_BUDGET_MIB")
      ->check(CLI::NonNegativeNumber);
  serve->add_option("--max-sandboxes", options.max_sandboxes, "most sandboxes at once")->envname("FORKD_MAX_SANDBOXES")->check(CLI::PositiveNumber)->capture_default_str();
  serve
      ->add_option("--standby-default", options.standby_default,
                   "children to keep restored and ready for each snapshot: a number, or auto for what its recent forks asked for")
      ->envname("FORKD_STANDBY_DEFAULT")
      ->check(CLI::IsMember({"auto"}) | CLI::Range(0, 1000))
      ->capture_default_str();
  serve->add_option("--ready-file", options.ready_file, "write the bound addresses there once calls are served (for scripts; with port 0)")
      ->envname("FORKD_READY_FILE");
  serve->add_flag("--stop-sandboxes-on-exit", options.stop_sandboxes_on_exit, "delete every sandbox at SIGTERM instead of leaving it running")
      ->envname("FORKD_STOP_SANDBOXES_ON_EXIT");

  bool json = false;
  CLI::App* doctor = app.add_subcommand("doctor", "say what works on this host, what does not, and what to do");
  doctor->add_flag("--json", json, "print JSON");

  for (CLI::App* command : {serve, doctor}) {
    command->add_option("--state-dir", options.state_dir, "folder of everything that outlives the daemon")->envname("FORKD_STATE_DIR")->capture_default_str();
    command->add_option("--image-root", options.image_root, "folder of guest images; the only one that callers may name files in (default STATE_DIR/images)")
        ->envname("FORKD_IMAGE_ROOT");
    command->add_option("--vmm", options.vmm, "which VMM runs sandboxes")->envname("FORKD_VMM")->check(CLI::IsMember({"qemu"}))->capture_default_str();
    command->add_option("--qemu", options.qemu, "path of qemu-system-x86_64")->envname("FORKD_QEMU")->capture_default_str();
    command->add_option("--accelerator", options.accelerator, "auto asks a probe that really runs guest code")
        ->envname("FORKD_ACCELERATOR")
        ->check(CLI::IsMember({"auto", "kvm", "tcg"}))
        ->capture_default_str();
  }
  CLI::App* version = app.add_subcommand("version", "print the version");

  CLI11_PARSE(app, argc, argv);
  if (*version) {
    std::printf("forkd-controller %s\n", forkd::kVersion);
    return 0;
  }
  if (*doctor) { return forkd::server::RunDoctor(options, json); }
  return forkd::server::Serve(options);
}
