#include "cgroup/quota_writes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd::cgroup {
namespace {

Quota Everything() {
  Quota quota;
  quota.memory_max_bytes = 268435456;
  quota.cpu_quota_millicores = 1500;
  quota.cpu_weight = 50;
  quota.pids_max = 64;
  quota.io_read_bytes_per_second = 1048576;
  quota.io_write_bytes_per_second = 524288;
  quota.io_read_operations_per_second = 100;
  quota.io_write_operations_per_second = 50;
  quota.io_devices = {{8, 0}, {254, 16}};
  return quota;
}

std::string Golden(const std::vector<Write>& writes) {
  std::string text;
  for (const Write& write : writes) { absl::StrAppend(&text, write.controller, "/", write.file, " <- ", write.value, "\n"); }
  return text;
}

TEST(QuotaWritesTest, V2WritesEveryLimitOnceAndSwapBeforeMemory) {
  EXPECT_EQ(Golden(V2Writes(Everything())),
            "memory/memory.swap.max <- 0\n"
            "memory/memory.oom.group <- 1\n"
            "memory/memory.max <- 268435456\n"
            "cpu/cpu.max <- 150000 100000\n"
            "cpu/cpu.weight <- 50\n"
            "pids/pids.max <- 64\n"
            "io/io.max <- 8:0 rbps=1048576 wbps=524288 riops=100 wiops=50\n"
            "io/io.max <- 254:16 rbps=1048576 wbps=524288 riops=100 wiops=50\n");
}

TEST(QuotaWritesTest, V1LowersMemoryBeforeTheSumOfMemoryAndSwap) {
  EXPECT_EQ(Golden(V1Writes(Everything(), 9223372036854771712)),
            "memory/memory.swappiness <- 0\n"
            "memory/memory.limit_in_bytes <- 268435456\n"
            "memory/memory.memsw.limit_in_bytes <- 268435456\n"
            "cpu/cpu.cfs_period_us <- 100000\n"
            "cpu/cpu.cfs_quota_us <- 150000\n"
            "cpu/cpu.shares <- 512\n"
            "pids/pids.max <- 64\n"
            "blkio/blkio.throttle.read_bps_device <- 8:0 1048576\n"
            "blkio/blkio.throttle.read_bps_device <- 254:16 1048576\n"
            "blkio/blkio.throttle.write_bps_device <- 8:0 524288\n"
            "blkio/blkio.throttle.write_bps_device <- 254:16 524288\n"
            "blkio/blkio.throttle.read_iops_device <- 8:0 100\n"
            "blkio/blkio.throttle.read_iops_device <- 254:16 100\n"
            "blkio/blkio.throttle.write_iops_device <- 8:0 50\n"
            "blkio/blkio.throttle.write_iops_device <- 254:16 50\n");
}

TEST(QuotaWritesTest, V1RaisesTheSumOfMemoryAndSwapFirst) {
  Quota quota;
  quota.memory_max_bytes = 64 << 20;
  EXPECT_EQ(Golden(V1Writes(quota, 32 << 20)),
            "memory/memory.swappiness <- 0\n"
            "memory/memory.memsw.limit_in_bytes <- 67108864\n"
            "memory/memory.limit_in_bytes <- 67108864\n");
}

TEST(QuotaWritesTest, AnEmptyQuotaWritesNothing) {
  EXPECT_TRUE(V2Writes({}).empty());
  EXPECT_TRUE(V1Writes({}, 0).empty());
}

TEST(QuotaWritesTest, SharesFollowWeightWithinTheKernelsRange) {
  EXPECT_EQ(SharesOfWeight(100), 1024);
  EXPECT_EQ(SharesOfWeight(1), 10);
  EXPECT_EQ(SharesOfWeight(10000), 102400);
}

TEST(QuotaWritesTest, ReadsNumbersAndKeys) {
  EXPECT_EQ(ParseNumber("4096\n"), 4096);
  EXPECT_EQ(ParseNumber("max\n"), std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(ParseNumber(""), std::nullopt);
  EXPECT_EQ(ParseNumber("12a"), std::nullopt);
  EXPECT_EQ(ParseKeyed("low 0\nhigh 1\nmax 17\noom 2\noom_kill 1\n", "oom_kill"), 1);
  EXPECT_EQ(ParseKeyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), 3);
  EXPECT_EQ(ParseKeyed("a 1\n", "b"), std::nullopt);
  EXPECT_THAT(ParsePids("12\n0\n7\nx\n"), testing::ElementsAre(12, 7));
}

TEST(QuotaWritesTest, SumsIoOverDevices) {
  const IoCounts v1 = ParseV1Io("8:0 Read 100\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 120\n9:1 Read 1\nTotal 121\n");
  EXPECT_EQ(v1.read, 101);
  EXPECT_EQ(v1.write, 20);
  const V2Io v2 = ParseV2Io("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n9:0 rbytes=1 wbytes=1 rios=1 wios=1\n");
  EXPECT_EQ(v2.bytes.read, 11);
  EXPECT_EQ(v2.bytes.write, 21);
  EXPECT_EQ(v2.operations.read, 2);
  EXPECT_EQ(v2.operations.write, 3);
}

TEST(QuotaTest, NamesTheFieldThatIsOutOfRange) {
  const auto refused = [](absl::string_view field, const Quota& quota) {
    const absl::Status status = ValidateQuota(quota);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_EQ(ReasonOf(status), "INVALID_FIELD");
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(std::string(field)));
  };
  refused("memory_max_bytes", {.memory_max_bytes = kMinMemoryBytes - 1});
  refused("memory_max_bytes", {.memory_max_bytes = -1});
  refused("memory_max_bytes", {.memory_max_bytes = std::numeric_limits<std::int64_t>::max()});
  refused("cpu_quota_millicores", {.cpu_quota_millicores = 0});
  refused("cpu_weight", {.cpu_weight = 10001});
  refused("pids_max", {.pids_max = 0});
  refused("io_read_bytes_per_second", {.io_read_bytes_per_second = 0, .io_devices = {{8, 0}}});
  refused("block devices", {.io_write_operations_per_second = 10});
  EXPECT_TRUE(ValidateQuota(Everything()).ok());
  EXPECT_TRUE(ValidateQuota({.memory_max_bytes = std::int64_t{256} << 20}).ok());
}

}  // namespace
}  // namespace forkd::cgroup
