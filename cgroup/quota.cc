#include "cgroup/quota.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/error.h"
#include "base/reasons.h"

namespace forkd::cgroup {
namespace {

absl::Status CheckRange(absl::string_view field, const std::optional<std::int64_t>& value, std::int64_t low, std::int64_t high) {
  if (!value || (*value >= low && *value <= high)) { return absl::OkStatus(); }
  return InvalidField(field, absl::StrFormat("%s is %d; it must be from %d to %d", field, *value, low, high));
}

}  // namespace

absl::Status ValidateQuota(const Quota& quota) {
  // Devices that do a gigabyte a second exist, devices that do a terabyte do not: beyond that a number is a slip.
  constexpr std::int64_t kMaxIo = std::int64_t{1} << 40;
  for (const absl::Status& status : {
           CheckRange("memory_max_bytes", quota.memory_max_bytes, kMinMemoryBytes, kMaxMemoryBytes),
           CheckRange("cpu_quota_millicores", quota.cpu_quota_millicores, kMinCpuMillicores, kMaxCpuMillicores),
           CheckRange("cpu_weight", quota.cpu_weight, 1, 10'000),
           CheckRange("pids_max", quota.pids_max, 1, kMaxPids),
           CheckRange("io_read_bytes_per_second", quota.io_read_bytes_per_second, 4096, kMaxIo),
           CheckRange("io_write_bytes_per_second", quota.io_write_bytes_per_second, 4096, kMaxIo),
           CheckRange("io_read_operations_per_second", quota.io_read_operations_per_second, 1, UINT32_MAX),
           CheckRange("io_write_operations_per_second", quota.io_write_operations_per_second, 1, UINT32_MAX),
       }) {
    if (!status.ok()) { return status; }
  }
  if (quota.HasIoLimit() && quota.io_devices.empty()) {
    return InvalidField("io_devices", "an io limit needs the block devices it counts for");
  }
  return absl::OkStatus();
}

absl::StatusOr<BlockDevice> BlockDeviceUnderBlocking(const std::string& path) {
  struct stat file;
  if (::stat(path.c_str(), &file) != 0) { return ErrnoError(errno, absl::StrCat("stat ", Quoted(path))); }
  const std::string node = absl::StrCat("/sys/dev/block/", major(file.st_dev), ":", minor(file.st_dev));
  char resolved[PATH_MAX];
  if (::realpath(node.c_str(), resolved) == nullptr) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
                 absl::StrCat(Quoted(path), " does not lie on a block device; limit its io by the VMM instead"));
  }
  // A partition is a folder inside its disk's: the io controllers know whole disks alone.
  std::string disk = resolved;
  if (::access(absl::StrCat(disk, "/partition").c_str(), F_OK) == 0) { disk = disk.substr(0, disk.rfind('/')); }
  FILE* dev = ::fopen(absl::StrCat(disk, "/dev").c_str(), "re");
  if (dev == nullptr) { return ErrnoError(errno, absl::StrCat("open ", Quoted(disk + "/dev"))); }
  BlockDevice device;
  const int fields = ::fscanf(dev, "%u:%u", &device.major, &device.minor);
  ::fclose(dev);
  if (fields != 2) {
    return Error(absl::StatusCode::kInternal, Reason::kSystemCall, absl::StrCat(Quoted(disk + "/dev"), " does not hold MAJOR:MINOR"));
  }
  return device;
}

}  // namespace forkd::cgroup
