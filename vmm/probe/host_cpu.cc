#include "vmm/probe/host_cpu.h"

#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace forkd::vmm {
namespace {

int64_t RawNanoseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}

struct Sample {
  int64_t ns;
  uint64_t tsc;
};

// The tightest of a few readings: one that was not interrupted between the two clocks.
Sample TakeSample() {
#if defined(__x86_64__)
  Sample best{};
  int64_t best_gap = INT64_MAX;
  for (int i = 0; i < 20; ++i) {
    const int64_t before = RawNanoseconds();
    const uint64_t tsc = __rdtsc();
    const int64_t after = RawNanoseconds();
    if (after - before < best_gap) {
      best_gap = after - before;
      best = {before + (after - before) / 2, tsc};
    }
  }
  return best;
#else
  return {RawNanoseconds(), 0};
#endif
}

}  // namespace

std::string ParseHostCpu(absl::string_view cpuinfo) {
  std::map<std::string, std::string> first;
  for (const absl::string_view line : absl::StrSplit(cpuinfo, '\n')) {
    if (line.empty()) { break; }
    const std::pair<absl::string_view, absl::string_view> entry = absl::StrSplit(line, absl::MaxSplits(':', 1));
    first.emplace(std::string(absl::StripAsciiWhitespace(entry.first)), std::string(absl::StripAsciiWhitespace(entry.second)));
  }
  if (first.find("vendor_id") == first.end()) { return "unknown"; }
  std::vector<std::string> flags = absl::StrSplit(first["flags"], ' ', absl::SkipEmpty());
  std::sort(flags.begin(), flags.end());
  return absl::StrCat(first["vendor_id"], " ", first["cpu family"], "/", first["model"], "/", first["stepping"], ": ", absl::StrJoin(flags, " "));
}

std::string HostCpuBlocking() {
  std::ifstream file("/proc/cpuinfo");
  std::stringstream text;
  text << file.rdbuf();
  return ParseHostCpu(text.str());
}

int64_t MeasureTscKhzBlocking() {
  const Sample begin = TakeSample();
  const timespec pause{.tv_sec = 0, .tv_nsec = 30'000'000};
  ::nanosleep(&pause, nullptr);
  const Sample end = TakeSample();
  if (end.ns <= begin.ns) { return 0; }
  return static_cast<int64_t>(static_cast<double>(end.tsc - begin.tsc) * 1e6 / static_cast<double>(end.ns - begin.ns));
}

}  // namespace forkd::vmm
