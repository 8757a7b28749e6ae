#include "vmm/qemu/qemu_args.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace forkd::vmm {
namespace {

// One argument a line. FORKD_UPDATE_GOLDEN=<source folder of the golden files> writes them anew.
void ExpectGolden(const std::string& name, const std::vector<std::string>& args) {
  const std::string text = absl::StrJoin(args, "\n") + "\n";
  if (const char* folder = std::getenv("FORKD_UPDATE_GOLDEN")) { std::ofstream(absl::StrCat(folder, "/", name)) << text; }
  std::ifstream file(absl::StrCat("vmm/qemu/golden/", name));
  std::stringstream golden;
  golden << file.rdbuf();
  EXPECT_EQ(golden.str(), text) << "in vmm/qemu/golden/" << name;
}

QemuMachine Machine(Accelerator accelerator) {
  return {.binary = "/usr/bin/qemu-system-x86_64",
          .accelerator = accelerator,
          .shape = {.vcpus = 2, .memory_mib = 256},
          .id = "sb-1",
          .has_rootfs = true};
}

TEST(QemuArgs, OfAParentUnderTcg) {
  ExpectGolden("parent_tcg.txt", QemuParentArgs(Machine(Accelerator::kTcg), /*has_initrd=*/true, "console=ttyS0 tsc_early_khz=2600000"));
}

TEST(QemuArgs, OfAChildUnderKvm) { ExpectGolden("child_kvm.txt", QemuChildArgs(Machine(Accelerator::kKvm))); }

TEST(QemuArgs, OfAParentUnderKvmWithoutDiskAndInitrd) {
  QemuMachine machine = Machine(Accelerator::kKvm);
  machine.has_rootfs = false;
  ExpectGolden("parent_kvm.txt", QemuParentArgs(machine, /*has_initrd=*/false, ""));
}

// What a parent and its children must have in common is what a device state depends on.
TEST(QemuArgs, ParentAndChildHaveTheSameMachine) {
  for (const Accelerator accelerator : {Accelerator::kTcg, Accelerator::kKvm}) {
    const std::vector<std::string> parent = QemuParentArgs(Machine(accelerator), true, "x");
    const std::vector<std::string> child = QemuChildArgs(Machine(accelerator));
    for (const std::string& option : {"-machine", "-accel", "-cpu", "-smp", "-m", "-serial"}) {
      const auto in_parent = std::find(parent.begin(), parent.end(), option);
      const auto in_child = std::find(child.begin(), child.end(), option);
      ASSERT_TRUE(in_parent != parent.end() && in_child != child.end()) << option;
      EXPECT_EQ(*std::next(in_parent), *std::next(in_child)) << option;
    }
    std::vector<std::string> parent_devices;
    std::vector<std::string> child_devices;
    for (std::size_t i = 0; i + 1 < parent.size(); ++i) {
      if (parent[i] == "-device") { parent_devices.push_back(parent[i + 1]); }
    }
    for (std::size_t i = 0; i + 1 < child.size(); ++i) {
      if (child[i] == "-device") { child_devices.push_back(child[i + 1]); }
    }
    EXPECT_EQ(parent_devices, child_devices);
  }
}

TEST(QemuArgs, ChildrenCannotWriteTheRootAndHaveNoKernel) {
  const std::string child = absl::StrJoin(QemuChildArgs(Machine(Accelerator::kTcg)), " ");
  EXPECT_TRUE(absl::StrContains(child, "share=off"));
  EXPECT_FALSE(absl::StrContains(child, "share=on"));
  EXPECT_FALSE(absl::StrContains(child, "-kernel"));
}

TEST(QemuArgs, ConfinementIsOnForBoth) {
  for (const auto& args : {QemuParentArgs(Machine(Accelerator::kTcg), true, ""), QemuChildArgs(Machine(Accelerator::kTcg))}) {
    const std::string line = absl::StrJoin(args, " ");
    for (const absl::string_view wanted :
         {"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "mem-merge=off", "dump-guest-core=off", "merge=off,dump=off",
          "-nodefaults", "-no-user-config", "read-only=on", "ringbuf"}) {
      EXPECT_TRUE(absl::StrContains(line, wanted)) << wanted;
    }
  }
}

}  // namespace
}  // namespace forkd::vmm
