// What one sandbox may take from the host. Plain values without a file system: which files they become is the business of quota_writes.h.
#ifndef FORKD_CGROUP_QUOTA_H_
#define FORKD_CGROUP_QUOTA_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace forkd::cgroup {

struct BlockDevice {
  std::uint32_t major = 0;
  std::uint32_t minor = 0;
  friend bool operator==(const BlockDevice&, const BlockDevice&) = default;
};

// An absent value sets no limit. A limit counts for each of `io_devices` on its own.
struct Quota {
  // Charged memory, page cache included. Swap is off for whoever has this limit: it would only hide the limit, and put guest memory on disk.
  std::optional<std::int64_t> memory_max_bytes;
  // CPU time per wall time, in thousandths of a core.
  std::optional<std::int64_t> cpu_quota_millicores;
  // Share against siblings when cores are scarce, 1 to 10000; the kernel's default is 100.
  std::optional<std::int64_t> cpu_weight;
  // Tasks (processes and threads) of the leaf.
  std::optional<std::int64_t> pids_max;
  std::optional<std::int64_t> io_read_bytes_per_second;
  std::optional<std::int64_t> io_write_bytes_per_second;
  std::optional<std::int64_t> io_read_operations_per_second;
  std::optional<std::int64_t> io_write_operations_per_second;
  // Whole disks, not partitions. Required with any io limit, as the kernel's controllers know devices, not files.
  std::vector<BlockDevice> io_devices;

  bool HasIoLimit() const {
    return io_read_bytes_per_second || io_write_bytes_per_second || io_read_operations_per_second || io_write_operations_per_second;
  }
};

// Bounds that no kernel or guest gets along without; the caller may be stricter.
inline constexpr std::int64_t kMinMemoryBytes = std::int64_t{16} << 20;  // as the contract's memory_limit_mib
inline constexpr std::int64_t kMaxMemoryBytes = std::int64_t{1} << 40;   // as the contract's memory_limit_mib
inline constexpr std::int64_t kMinCpuMillicores = 10;                    // the kernel's smallest quota is 1 ms in a period of 100 ms
inline constexpr std::int64_t kMaxCpuMillicores = 1'024'000;
inline constexpr std::int64_t kMaxPids = 4'194'304;                      // PID_MAX_LIMIT of a 64-bit kernel

// INVALID_ARGUMENT INVALID_FIELD that names the field ("memory_max_bytes").
absl::Status ValidateQuota(const Quota& quota);

// What a leaf has used. A value that this host's controllers do not count is absent, never zero.
struct Usage {
  std::optional<std::int64_t> memory_bytes;
  std::optional<std::int64_t> memory_peak_bytes;
  // Processes of the leaf that the kernel killed because its memory limit was reached.
  std::optional<std::int64_t> oom_kill_count;
  std::optional<std::int64_t> cpu_time_us;
  std::optional<std::int64_t> cpu_throttled_us;
  std::optional<std::int64_t> cpu_throttled_count;
  std::optional<std::int64_t> pid_count;
  // Forks refused because of pids_max.
  std::optional<std::int64_t> pids_refused_count;
  std::optional<std::int64_t> io_read_bytes;
  std::optional<std::int64_t> io_write_bytes;
  std::optional<std::int64_t> io_read_operation_count;
  std::optional<std::int64_t> io_write_operation_count;
};

// The whole disk under the file system that holds `path`. FAILED_PRECONDITION HOST_MISSING where there is none (tmpfs, overlay, network).
absl::StatusOr<BlockDevice> BlockDeviceUnderBlocking(const std::string& path);

}  // namespace forkd::cgroup

#endif  // FORKD_CGROUP_QUOTA_H_
