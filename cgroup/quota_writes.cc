#include "cgroup/quota_writes.h"

#include <algorithm>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace forkd::cgroup {
namespace {

// The kernel's default period: shorter ones cost more interrupts, longer ones freeze a guest for longer at a time.
constexpr std::int64_t kPeriodUs = 100'000;

std::string QuotaUs(std::int64_t millicores) { return absl::StrCat(millicores * kPeriodUs / 1000); }

std::string DeviceName(const BlockDevice& device) { return absl::StrCat(device.major, ":", device.minor); }

void AddV1Io(const Quota& quota, const std::optional<std::int64_t>& limit, absl::string_view file, std::vector<Write>* writes) {
  if (!limit) { return; }
  for (const BlockDevice& device : quota.io_devices) {
    writes->push_back({"blkio", std::string(file), absl::StrCat(DeviceName(device), " ", *limit)});
  }
}

}  // namespace

std::int64_t SharesOfWeight(std::int64_t weight) {
  return std::clamp<std::int64_t>(weight * 1024 / 100, 2, 262'144);
}

std::vector<Write> V2Writes(const Quota& quota) {
  std::vector<Write> writes;
  if (quota.memory_max_bytes) {
    writes.push_back({"memory", "memory.swap.max", "0"});
    writes.push_back({"memory", "memory.oom.group", "1"});
    writes.push_back({"memory", "memory.max", absl::StrCat(*quota.memory_max_bytes)});
  }
  if (quota.cpu_quota_millicores) {
    writes.push_back({"cpu", "cpu.max", absl::StrCat(QuotaUs(*quota.cpu_quota_millicores), " ", kPeriodUs)});
  }
  if (quota.cpu_weight) { writes.push_back({"cpu", "cpu.weight", absl::StrCat(*quota.cpu_weight)}); }
  if (quota.pids_max) { writes.push_back({"pids", "pids.max", absl::StrCat(*quota.pids_max)}); }
  if (quota.HasIoLimit()) {
    std::string limits;
    const auto add = [&limits](absl::string_view key, const std::optional<std::int64_t>& value) {
      if (value) { absl::StrAppend(&limits, " ", key, "=", *value); }
    };
    add("rbps", quota.io_read_bytes_per_second);
    add("wbps", quota.io_write_bytes_per_second);
    add("riops", quota.io_read_operations_per_second);
    add("wiops", quota.io_write_operations_per_second);
    for (const BlockDevice& device : quota.io_devices) { writes.push_back({"io", "io.max", absl::StrCat(DeviceName(device), limits)}); }
  }
  return writes;
}

std::vector<Write> V1Writes(const Quota& quota, std::int64_t current_memory_limit) {
  std::vector<Write> writes;
  if (quota.memory_max_bytes) {
    const std::string bytes = absl::StrCat(*quota.memory_max_bytes);
    const Write memory{"memory", "memory.limit_in_bytes", bytes};
    // Memory and swap together no larger than memory: no swap.
    const Write both{"memory", "memory.memsw.limit_in_bytes", bytes};
    writes.push_back({"memory", "memory.swappiness", "0"});
    if (*quota.memory_max_bytes > current_memory_limit) {
      writes.push_back(both);
      writes.push_back(memory);
    } else {
      writes.push_back(memory);
      writes.push_back(both);
    }
  }
  if (quota.cpu_quota_millicores) {
    writes.push_back({"cpu", "cpu.cfs_period_us", absl::StrCat(kPeriodUs)});
    writes.push_back({"cpu", "cpu.cfs_quota_us", QuotaUs(*quota.cpu_quota_millicores)});
  }
  if (quota.cpu_weight) { writes.push_back({"cpu", "cpu.shares", absl::StrCat(SharesOfWeight(*quota.cpu_weight))}); }
  if (quota.pids_max) { writes.push_back({"pids", "pids.max", absl::StrCat(*quota.pids_max)}); }
  AddV1Io(quota, quota.io_read_bytes_per_second, "blkio.throttle.read_bps_device", &writes);
  AddV1Io(quota, quota.io_write_bytes_per_second, "blkio.throttle.write_bps_device", &writes);
  AddV1Io(quota, quota.io_read_operations_per_second, "blkio.throttle.read_iops_device", &writes);
  AddV1Io(quota, quota.io_write_operations_per_second, "blkio.throttle.write_iops_device", &writes);
  return writes;
}

std::optional<std::int64_t> ParseNumber(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  if (text == "max") { return std::numeric_limits<std::int64_t>::max(); }
  std::int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) { return std::nullopt; }
  return value;
}

std::optional<std::int64_t> ParseKeyed(absl::string_view text, absl::string_view key) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (field.first == key) { return ParseNumber(field.second); }
  }
  return std::nullopt;
}

std::vector<std::int64_t> ParsePids(absl::string_view text) {
  std::vector<std::int64_t> pids;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    // A process of another pid namespace reads as 0; it cannot be named, so it cannot be killed by number.
    if (const std::optional<std::int64_t> pid = ParseNumber(line); pid && *pid > 0) { pids.push_back(*pid); }
  }
  return pids;
}

IoCounts ParseV1Io(absl::string_view text) {
  IoCounts counts;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() != 3) { continue; }
    const std::optional<std::int64_t> value = ParseNumber(words[2]);
    if (!value) { continue; }
    if (words[1] == "Read") { counts.read += *value; }
    if (words[1] == "Write") { counts.write += *value; }
  }
  return counts;
}

V2Io ParseV2Io(absl::string_view text) {
  V2Io io;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    for (absl::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(word, absl::MaxSplits('=', 1));
      const std::optional<std::int64_t> value = ParseNumber(field.second);
      if (!value) { continue; }
      if (field.first == "rbytes") { io.bytes.read += *value; }
      if (field.first == "wbytes") { io.bytes.write += *value; }
      if (field.first == "rios") { io.operations.read += *value; }
      if (field.first == "wios") { io.operations.write += *value; }
    }
  }
  return io;
}

}  // namespace forkd::cgroup
