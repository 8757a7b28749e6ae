#include "engine/registry/rows.h"

namespace forkd::engine {
namespace {

template <typename Enum>
struct Named {
  Enum value;
  absl::string_view name;
};

constexpr Named<SandboxState> kSandboxStates[] = {
    {SandboxState::kStarting, "STARTING"},   {SandboxState::kRunning, "RUNNING"},   {SandboxState::kPaused, "PAUSED"},
    {SandboxState::kBranching, "BRANCHING"}, {SandboxState::kStopping, "STOPPING"}, {SandboxState::kFailed, "FAILED"},
};
constexpr Named<SnapshotStatus> kSnapshotStatuses[] = {
    {SnapshotStatus::kWriting, "writing"}, {SnapshotStatus::kReady, "ready"}, {SnapshotStatus::kFailed, "failed"}};
constexpr Named<SnapshotKind> kSnapshotKinds[] = {{SnapshotKind::kRoot, "root"}, {SnapshotKind::kBranch, "branch"}};

template <typename Enum, std::size_t N>
absl::string_view NameIn(const Named<Enum> (&table)[N], Enum value) {
  for (const Named<Enum>& row : table) {
    if (row.value == value) { return row.name; }
  }
  return "";
}

template <typename Enum, std::size_t N>
std::optional<Enum> ValueIn(const Named<Enum> (&table)[N], absl::string_view name) {
  for (const Named<Enum>& row : table) {
    if (row.name == name) { return row.value; }
  }
  return std::nullopt;
}

}  // namespace

absl::string_view SandboxStateName(SandboxState state) { return NameIn(kSandboxStates, state); }
std::optional<SandboxState> SandboxStateFromName(absl::string_view name) { return ValueIn(kSandboxStates, name); }
absl::string_view SnapshotStatusName(SnapshotStatus status) { return NameIn(kSnapshotStatuses, status); }
std::optional<SnapshotStatus> SnapshotStatusFromName(absl::string_view name) { return ValueIn(kSnapshotStatuses, name); }
absl::string_view SnapshotKindName(SnapshotKind kind) { return NameIn(kSnapshotKinds, kind); }
std::optional<SnapshotKind> SnapshotKindFromName(absl::string_view name) { return ValueIn(kSnapshotKinds, name); }

}  // namespace forkd::engine
