// A quota as the writes that apply it, and the kernel's answers as numbers. Pure: no files.
// Sources: Documentation/admin-guide/cgroup-v1/{memory,pids,blkio-controller}.rst, scheduler/sched-bwc.rst, admin-guide/cgroup-v2.rst.
#ifndef FORKD_CGROUP_QUOTA_WRITES_H_
#define FORKD_CGROUP_QUOTA_WRITES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "cgroup/quota.h"

namespace forkd::cgroup {

struct Write {
  std::string controller;  // "memory", "cpu", "pids", "blkio" (v1) or "io" (v2)
  std::string file;        // "memory.limit_in_bytes"
  std::string value;       // without a line end; one device per write, as io files take it
  friend bool operator==(const Write&, const Write&) = default;
};

// In the order in which they must be made. `quota` is valid.
std::vector<Write> V2Writes(const Quota& quota);
// `current_memory_limit`: what memory.limit_in_bytes holds now. v1 demands memory ≤ memory + swap at any moment, so raising writes the sum
// first and lowering writes it last.
std::vector<Write> V1Writes(const Quota& quota, std::int64_t current_memory_limit);

// v1's cpu.shares for a v2 weight: 100 is 1024, within [2, 262144].
std::int64_t SharesOfWeight(std::int64_t weight);

// The integer of a file that holds one. "max" and v1's "no limit" values are the kernel's largest numbers. nullopt if it is none.
std::optional<std::int64_t> ParseNumber(absl::string_view text);
// The value of `key` in lines `key value` (cpu.stat, memory.events, memory.oom_control).
std::optional<std::int64_t> ParseKeyed(absl::string_view text, absl::string_view key);
// The process ids of cgroup.procs.
std::vector<std::int64_t> ParsePids(absl::string_view text);

struct IoCounts {
  std::int64_t read = 0;
  std::int64_t write = 0;
};
// v1 (`8:0 Read 4096`), summed over devices; "Total" lines are left out.
IoCounts ParseV1Io(absl::string_view text);
// v2 io.stat (`8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`), summed over devices.
struct V2Io {
  IoCounts bytes;
  IoCounts operations;
};
V2Io ParseV2Io(absl::string_view text);

}  // namespace forkd::cgroup

#endif  // FORKD_CGROUP_QUOTA_WRITES_H_
