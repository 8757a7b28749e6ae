// What a sandbox may take from the host: a cgroup leaf for each VMM.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::engine {
namespace {

// A QEMU with its vCPUs, its main loop, RCU and worker threads has about a dozen tasks; what needs many more is not a VMM that behaves.
constexpr std::int64_t kVmmPidsMax = 256;

cgroup::Quota QuotaOf(std::optional<std::int64_t> memory_limit_mib) {
  cgroup::Quota quota;
  quota.pids_max = kVmmPidsMax;
  if (memory_limit_mib.has_value()) { quota.memory_max_bytes = *memory_limit_mib * 1024 * 1024; }
  return quota;
}

absl::Status NoControllers() {
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kHostMissing,
               "memory_limit_mib cannot be applied: this host has no cgroup controllers (see forkd-controller doctor)")
      .Field("memory_limit_mib", "cannot be applied on this host");
}

}  // namespace

std::string Engine::LeafOf(const std::string& run_dir) const { return absl::StrCat(instance_, "/", run_dir.substr(run_dir.rfind('/') + 1)); }

Task<absl::StatusOr<std::vector<UniqueFd>>> Engine::MakeLeaf(std::string run_dir, std::optional<std::int64_t> memory_limit_mib) {
  if (parts_.cgroups == nullptr) {
    if (memory_limit_mib.has_value()) { co_return NoControllers(); }
    co_return std::vector<UniqueFd>();
  }
  auto make = [tree = parts_.cgroups, path = LeafOf(run_dir), quota = QuotaOf(memory_limit_mib)]() -> absl::StatusOr<std::vector<UniqueFd>> {
    FORKD_RETURN_IF_ERROR(tree->Create(path, quota));
    return tree->OpenForJoining(path);
  };
  co_return co_await parts_.pool->Run(std::move(make));
}

Task<absl::Status> Engine::ApplyQuota(std::string run_dir, std::optional<std::int64_t> memory_limit_mib) {
  if (!memory_limit_mib.has_value()) { co_return absl::OkStatus(); }
  if (parts_.cgroups == nullptr) { co_return NoControllers(); }
  auto apply = [tree = parts_.cgroups, path = LeafOf(run_dir), quota = QuotaOf(memory_limit_mib)] { return tree->Apply(path, quota); };
  co_return co_await parts_.pool->Run(std::move(apply));
}

Task<void> Engine::RemoveLeaf(std::string run_dir) {
  if (parts_.cgroups == nullptr || run_dir.empty()) { co_return; }
  auto remove = [tree = parts_.cgroups, path = LeafOf(run_dir)]() -> absl::Status {
    // The VMM has ended; the kernel may still be taking it apart.
    FORKD_RETURN_IF_ERROR(tree->KillAll(path, Deadline::In(std::chrono::seconds(5))));
    return tree->Remove(path);
  };
  if (const absl::Status removed = co_await parts_.pool->Run(std::move(remove)); !removed.ok()) {
    spdlog::error("cgroup leaf not removed leaf={} error=\"{}\"", LeafOf(run_dir), std::string(removed.message()));
  }
}

Task<void> Engine::SweepCgroups() {
  if (parts_.cgroups == nullptr) { co_return; }
  std::vector<std::string> keep;
  for (const auto& [id, sandbox] : sandboxes_) { keep.push_back(LeafOf(sandbox->view.row.run_dir)); }
  auto sweep = [tree = parts_.cgroups, instance = instance_, keep] {
    return cgroup::SweepLeaves(*tree, instance, keep, Deadline::In(std::chrono::seconds(10)));
  };
  if (const absl::Status swept = co_await parts_.pool->Run(std::move(sweep)); !swept.ok()) {
    spdlog::error("cgroup leaves not swept error=\"{}\"", std::string(swept.message()));
  }
}

Task<bool> Engine::RanOutOfMemory(std::string run_dir) {
  if (parts_.cgroups == nullptr) { co_return false; }
  auto read = [tree = parts_.cgroups, path = LeafOf(run_dir)] { return tree->ReadUsage(path); };
  absl::StatusOr<cgroup::Usage> usage = co_await parts_.pool->Run(std::move(read));
  co_return usage.ok() && usage->oom_kill_count.value_or(0) > 0;
}

}  // namespace forkd::engine
