#include "vmm/vmm.h"

#include <gtest/gtest.h>

namespace forkd::vmm {
namespace {

MachineRecord Sample() {
  return {.vmm = "qemu",
          .vmm_version = "7.2.22",
          .machine = "microvm,acpi=on",
          .cpu_model = "max",
          .accelerator = "tcg",
          .devices = "virtio-serial-device",
          .shape = "vcpus=1,memory_mib=256",
          .host_cpu = "AuthenticAMD 26 2 1"};
}

TEST(MachineRecord, SurvivesTheWayThroughAManifest) {
  const absl::StatusOr<MachineRecord> back = MachineRecord::FromMap(Sample().ToMap());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, Sample());
}

TEST(MachineRecord, RefusesMissingAndUnknownFieldsByName) {
  auto missing = Sample().ToMap();
  missing.erase("cpu_model");
  EXPECT_EQ(MachineRecord::FromMap(missing).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(MachineRecord::FromMap(missing).status().message().find("machine.cpu_model"), absl::string_view::npos);
  auto unknown = Sample().ToMap();
  unknown["colour"] = "red";
  EXPECT_NE(MachineRecord::FromMap(unknown).status().message().find("machine.colour"), absl::string_view::npos);
}

TEST(MachineRecord, DifferencesAreNamedWithBothValues) {
  EXPECT_EQ(MachineDifference(Sample(), Sample()), "");
  MachineRecord here = Sample();
  here.vmm_version = "8.2.0";
  here.accelerator = "kvm";
  EXPECT_EQ(MachineDifference(Sample(), here),
            "vmm_version is \"8.2.0\", the snapshot was made with \"7.2.22\"; accelerator is \"kvm\", the snapshot was made with \"tcg\"");
}

}  // namespace
}  // namespace forkd::vmm
