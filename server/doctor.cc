#include "server/doctor.h"

#include <google/protobuf/util/json_util.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/admission.h"
#include "engine/images.h"
#include "vmm/probe/accelerator_probe.h"
#include "vmm/probe/qemu_probe.h"

namespace forkd::server {
namespace {

constexpr int64_t kMib = 1024 * 1024;

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

class Report {
 public:
  void Add(const char* name, v1::CheckStatus status, std::string found, std::string remedy = "") {
    v1::DoctorCheck* check = response_.add_checks();
    check->set_name(name);
    check->set_status(status);
    check->set_found(std::move(found));
    check->set_remedy(std::move(remedy));
    if (status == v1::CHECK_STATUS_FAIL) { healthy_ = false; }
  }
  v1::DoctorResponse Take() {
    response_.set_healthy(healthy_);
    return std::move(response_);
  }

 private:
  v1::DoctorResponse response_;
  bool healthy_ = true;
};

void CheckPrivilege(Report& report) {
  if (geteuid() == 0) {
    report.Add("privilege", v1::CHECK_STATUS_OK, "running as root");
  } else {
    report.Add("privilege", v1::CHECK_STATUS_FAIL, absl::StrCat("running as uid ", geteuid()), "start forkd-controller as root: it drops what it does not need");
  }
}

void CheckKernel(Report& report) {
  utsname name{};
  uname(&name);
  int major = 0;
  int minor = 0;
  std::sscanf(name.release, "%d.%d", &major, &minor);
  // openat2 and pidfd_getfd: 5.6; close_range: 5.9, with CLOEXEC 5.11.
  const bool enough = major > 5 || (major == 5 && minor >= 11);
  report.Add("kernel", enough ? v1::CHECK_STATUS_OK : v1::CHECK_STATUS_FAIL, absl::StrCat("Linux ", name.release),
             enough ? "" : "Linux 5.11 or later is needed (openat2, pidfd, close_range)");
}

void CheckAccelerator(Report& report) {
  const vmm::AcceleratorProbe probe = vmm::ProbeKvmBlocking();
  if (probe.usable) {
    report.Add("kvm", v1::CHECK_STATUS_OK, probe.reason);
  } else {
    report.Add("kvm", v1::CHECK_STATUS_WARN, probe.reason,
               "sandboxes run under software emulation: the same features, slower, and no boundary against hostile code; use a host with hardware "
               "virtualisation for that");
  }
}

void CheckQemu(Report& report, const std::string& binary) {
  const absl::StatusOr<vmm::QemuVersion> version = vmm::ProbeQemuBlocking(binary);
  if (version.ok()) {
    report.Add("qemu", v1::CHECK_STATUS_OK, absl::StrCat(binary, " ", version->text));
  } else {
    report.Add("qemu", v1::CHECK_STATUS_FAIL, std::string(version.status().message()), "apt-get install qemu-system-x86");
  }
}

void CheckImages(Report& report, const std::string& root) {
  engine::GuestImages images(root);
  std::vector<std::string> names;
  for (const engine::ImageSummary& image : images.ListBlocking()) { names.push_back(image.name); }
  if (names.empty()) {
    report.Add("images", v1::CHECK_STATUS_WARN, absl::StrCat("none in ", root), absl::StrCat("guest/image/build --out ", root));
  } else {
    report.Add("images", v1::CHECK_STATUS_OK, absl::StrJoin(names, ", "));
  }
}

void CheckDisk(Report& report, std::string dir) {
  struct statvfs fs {};
  // The state folder may not exist yet: then what it would be made in.
  while (statvfs(dir.c_str(), &fs) != 0 && dir.size() > 1) {
    dir = dir.substr(0, dir.rfind('/'));
    if (dir.empty()) { dir = "/"; }
  }
  const int64_t free_mib = static_cast<int64_t>(fs.f_bavail) * static_cast<int64_t>(fs.f_frsize) / kMib;
  // A few root snapshots.
  const bool enough = free_mib >= 2048;
  report.Add("disk", enough ? v1::CHECK_STATUS_OK : v1::CHECK_STATUS_WARN, absl::StrCat(free_mib, " MiB free at ", dir),
             enough ? "" : "a root snapshot takes up to the guest's memory on disk: make room, or pass --state-dir");
}

void CheckMemory(Report& report) {
  const int64_t available = engine::HostAvailableMib();
  const bool enough = available >= 1024;
  report.Add("memory", enough ? v1::CHECK_STATUS_OK : v1::CHECK_STATUS_WARN,
             absl::StrCat(available, " of ", engine::HostTotalMib(), " MiB available"), enough ? "" : "a snapshot of 512 MiB and a few children want 1 GiB");
}

void CheckCgroups(Report& report) {
  std::vector<std::string> v2;
  for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
    const std::string controllers = FirstLine(absl::StrCat(mount, "/cgroup.controllers"));
    if (!controllers.empty()) { v2.push_back(absl::StrCat("v2 at ", mount, ": ", controllers)); }
  }
  struct stat st {};
  if (stat("/sys/fs/cgroup/memory", &st) == 0) { v2.emplace_back("v1 controllers mounted"); }
  if (v2.empty()) {
    report.Add("cgroups", v1::CHECK_STATUS_WARN, "none found", "quotas need cgroup v2 with its controllers, or v1");
  } else {
    report.Add("cgroups", v1::CHECK_STATUS_OK, absl::StrJoin(v2, "; "));
  }
}

void CheckSmt(Report& report) {
  const std::string active = FirstLine("/sys/devices/system/cpu/smt/active");
  if (active == "1") {
    report.Add("smt", v1::CHECK_STATUS_WARN, "hyper-threading is on", "sandboxes of different owners may share a core: nosmt=force where that matters");
  } else {
    report.Add("smt", v1::CHECK_STATUS_OK, active.empty() ? "not reported" : "off");
  }
}

void CheckKsm(Report& report) {
  const std::string run = FirstLine("/sys/kernel/mm/ksm/run");
  const bool on = run == "1";
  report.Add("ksm", on ? v1::CHECK_STATUS_WARN : v1::CHECK_STATUS_OK, on ? "page merging is on" : "page merging is off",
             on ? "forkd marks guest memory as not mergeable; turn it off for the rest: echo 0 > /sys/kernel/mm/ksm/run" : "");
}

void CheckSwap(Report& report) {
  std::ifstream swaps("/proc/swaps");
  std::string line;
  int count = -1;  // The heading.
  while (std::getline(swaps, line)) { ++count; }
  report.Add("swap", count > 0 ? v1::CHECK_STATUS_WARN : v1::CHECK_STATUS_OK, count > 0 ? absl::StrCat(count, " swap areas") : "none",
             count > 0 ? "guest memory, secrets included, may reach the disk: swapoff -a, or encrypt it" : "");
}

void CheckCoreDumps(Report& report) {
  const std::string pattern = FirstLine("/proc/sys/kernel/core_pattern");
  report.Add("core dumps", v1::CHECK_STATUS_OK, absl::StrCat("pattern ", pattern, "; VMMs run with a core limit of 0"));
}

void CheckDescriptors(Report& report) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  // About five descriptors a sandbox, and those of the daemon.
  const bool enough = limit.rlim_max >= 4096;
  report.Add("descriptors", enough ? v1::CHECK_STATUS_OK : v1::CHECK_STATUS_WARN, absl::StrCat("at most ", limit.rlim_max),
             enough ? "" : "raise the hard limit (LimitNOFILE=): a sandbox takes about five");
}

}  // namespace

v1::DoctorResponse ExamineHostBlocking(const ServeOptions& options) {
  Report report;
  CheckPrivilege(report);
  CheckKernel(report);
  CheckAccelerator(report);
  CheckQemu(report, options.qemu);
  CheckImages(report, options.image_root.empty() ? absl::StrCat(options.state_dir, "/images") : options.image_root);
  CheckDisk(report, options.state_dir);
  CheckMemory(report);
  CheckDescriptors(report);
  CheckCgroups(report);
  CheckSmt(report);
  CheckKsm(report);
  CheckSwap(report);
  CheckCoreDumps(report);
  return report.Take();
}

int RunDoctor(const ServeOptions& options, bool json) {
  const v1::DoctorResponse response = ExamineHostBlocking(options);
  if (json) {
    google::protobuf::util::JsonPrintOptions print;
    print.always_print_primitive_fields = true;
    print.preserve_proto_field_names = true;
    std::string text;
    static_cast<void>(google::protobuf::util::MessageToJsonString(response, &text, print));
    std::printf("%s\n", text.c_str());
  } else {
    for (const v1::DoctorCheck& check : response.checks()) {
      const std::string status = v1::CheckStatus_Name(check.status());
      std::printf("%-6s %-12s %s\n", std::string(absl::StripPrefix(status, "CHECK_STATUS_")).c_str(), check.name().c_str(), check.found().c_str());
      if (!check.remedy().empty()) { std::printf("       %-12s → %s\n", "", check.remedy().c_str()); }
    }
    std::printf(response.healthy() ? "sandboxes can run here\n" : "sandboxes cannot run here until what FAILs is mended\n");
  }
  return response.healthy() ? 0 : 1;
}

}  // namespace forkd::server
