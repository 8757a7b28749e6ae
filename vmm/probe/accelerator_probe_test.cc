#include "vmm/probe/accelerator_probe.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "base/deadline.h"

namespace forkd::vmm {
namespace {

TEST(AcceleratorProbe, SaysWhyThereIsNoKvm) {
  const AcceleratorProbe missing = ProbeKvmBlocking("/dev/no-such-device");
  EXPECT_FALSE(missing.present);
  EXPECT_FALSE(missing.usable);
  EXPECT_NE(missing.reason.find("/dev/no-such-device"), std::string::npos) << missing.reason;
  const AcceleratorProbe other = ProbeKvmBlocking("/dev/null");
  EXPECT_FALSE(other.present);
  EXPECT_NE(other.reason.find("API version"), std::string::npos) << other.reason;
}

TEST(AcceleratorProbe, RunsRingZeroCodeAndGivesItsVerdictInTime) {
  if (::access("/dev/kvm", R_OK | W_OK) != 0) { GTEST_SKIP() << "no /dev/kvm"; }
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  const Deadline limit = Deadline::In(std::chrono::seconds(3));
  const AcceleratorProbe probe = ProbeKvmBlocking();
  EXPECT_FALSE(limit.Expired());
  std::printf("[ measured ] KVM %s: %s\n", probe.usable ? "usable" : "not usable", probe.reason.c_str());
  EXPECT_TRUE(probe.present);
  EXPECT_FALSE(probe.reason.empty());
  if (::access("/sys/module/kvm_pvm", F_OK) == 0) {
    EXPECT_FALSE(probe.usable) << "a KVM without hardware virtualisation boots no stock kernel";
    EXPECT_NE(probe.reason.find("kvm_pvm"), std::string::npos);
  }
  sigset_t after;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
  for (int signal = 1; signal < SIGRTMAX; ++signal) { EXPECT_EQ(::sigismember(&before, signal), ::sigismember(&after, signal)) << signal; }
}

TEST(AcceleratorProbe, MayBeAskedAgain) {
  const AcceleratorProbe first = ProbeKvmBlocking();
  const AcceleratorProbe second = ProbeKvmBlocking();
  EXPECT_EQ(first.usable, second.usable);
}

}  // namespace
}  // namespace forkd::vmm
