#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "base/error.h"
#include "vmm/probe/host_cpu.h"
#include "vmm/probe/qemu_probe.h"

namespace forkd::vmm {
namespace {

std::string Script(const std::string& name, const std::string& text) {
  const std::string path = std::string(std::getenv("TEST_TMPDIR")) + "/" + name;
  std::ofstream(path) << "#!/bin/sh\n" << text << "\n";
  ::chmod(path.c_str(), 0755);
  return path;
}

TEST(ParseQemuVersion, TakesDebiansAndPlainTexts) {
  const auto debian = ParseQemuVersion("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022 Fabrice Bellard\n");
  ASSERT_TRUE(debian.has_value());
  EXPECT_EQ(debian->major, 7);
  EXPECT_EQ(debian->minor, 2);
  EXPECT_EQ(debian->text, "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)");
  const auto plain = ParseQemuVersion("QEMU emulator version 10.0.50");
  ASSERT_TRUE(plain.has_value());
  EXPECT_EQ(plain->major, 10);
}

TEST(ParseQemuVersion, RefusesOthers) {
  for (const absl::string_view text : {"", "QEMU", "QEMU emulator version ", "QEMU emulator version x.y", "qemu-img version 7.2.22"}) {
    EXPECT_FALSE(ParseQemuVersion(text).has_value()) << text;
  }
}

TEST(ProbeQemu, SaysWhatToInstall) {
  for (const std::string& binary : {std::string("/no/such/qemu"), Script("fails", "exit 1"), Script("other", "echo hello"),
                                    Script("old", "echo QEMU emulator version 6.2.0"), Script("noisy", "yes")}) {
    const absl::Status status = ProbeQemuBlocking(binary).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << binary;
    EXPECT_EQ(ReasonOf(status), "HOST_MISSING");
    EXPECT_NE(status.message().find("apt-get install qemu-system-x86"), absl::string_view::npos) << status;
  }
}

TEST(ProbeQemu, TakesANewerOne) {
  const auto version = ProbeQemuBlocking(Script("new", "echo 'QEMU emulator version 9.1.0 (x)'"));
  ASSERT_TRUE(version.ok()) << version.status();
  EXPECT_EQ(version->text, "9.1.0 (x)");
}

TEST(HostCpu, NamesTheModelAndSortsItsFlags) {
  EXPECT_EQ(ParseHostCpu("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
                         "flags\t\t: sse2 fpu avx\n\nprocessor\t: 1\nvendor_id\t: Other\n"),
            "AuthenticAMD 26/2/1: avx fpu sse2");
  EXPECT_EQ(ParseHostCpu(""), "unknown");
  EXPECT_EQ(ParseHostCpu("a b c\n:::\n"), "unknown");
}

TEST(HostCpu, OfThisHostIsKnownAndStable) {
  EXPECT_NE(HostCpuBlocking(), "unknown");
  EXPECT_EQ(HostCpuBlocking(), HostCpuBlocking());
}

TEST(TscFrequency, IsPlausibleAndRepeatable) {
  const int64_t first = MeasureTscKhzBlocking();
  const int64_t second = MeasureTscKhzBlocking();
  EXPECT_GT(first, 500'000);
  EXPECT_LT(first, 10'000'000);
  // Linux itself accepts a deviation of 1 %; 0.1 % already shows on a machine that is not overloaded.
  EXPECT_NEAR(static_cast<double>(first), static_cast<double>(second), static_cast<double>(first) * 0.005);
}

}  // namespace
}  // namespace forkd::vmm
