#include "server/convert.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace forkd::server {
namespace {

// The contract's constant: the address that every guest has inside its own namespace.
constexpr char kGuestAddress[] = "10.42.0.2:8888";

template <typename Map>
engine::Labels ToLabels(const Map& map) {
  return engine::Labels(map.begin(), map.end());
}

absl::Status CheckLabels(const engine::Labels& labels) {
  for (const auto& [key, value] : labels) {
    const bool good = !key.empty() && key.size() <= 63 && std::all_of(key.begin(), key.end(), [](char c) {
      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-' || c == '/';
    });
    if (!good) { return InvalidField("labels", absl::StrCat("key ", Quoted(key), " must be 1-63 letters, digits, '.', '_', '-' or '/'")); }
    if (value.size() > 255) { return InvalidField("labels", absl::StrCat("the value of ", Quoted(key), " has ", value.size(), " bytes; at most 255")); }
  }
  return absl::OkStatus();
}

int Utf8Length(unsigned char lead) {
  if (lead < 0x80) { return 1; }
  if (lead >= 0xc2 && lead <= 0xdf) { return 2; }
  if (lead >= 0xe0 && lead <= 0xef) { return 3; }
  if (lead >= 0xf0 && lead <= 0xf4) { return 4; }
  return 0;
}

// Whether `text` begins with a well-formed sequence of `length` bytes (Unicode, table 3-7).
bool WellFormed(absl::string_view text, int length) {
  if (length == 0 || text.size() < static_cast<std::size_t>(length)) { return false; }
  const auto byte = [&text](int i) { return static_cast<unsigned char>(text[static_cast<std::size_t>(i)]); };
  for (int i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) { return false; }
  }
  const unsigned char lead = byte(0);
  if (lead == 0xe0 && byte(1) < 0xa0) { return false; }
  if (lead == 0xed && byte(1) > 0x9f) { return false; }
  if (lead == 0xf0 && byte(1) < 0x90) { return false; }
  if (lead == 0xf4 && byte(1) > 0x8f) { return false; }
  return true;
}

}  // namespace

std::string ToUtf8(absl::string_view bytes, bool* changed) {
  std::string text;
  text.reserve(bytes.size());
  *changed = false;
  while (!bytes.empty()) {
    const int length = Utf8Length(static_cast<unsigned char>(bytes[0]));
    if (WellFormed(bytes, length)) {
      text.append(bytes.data(), static_cast<std::size_t>(length));
      bytes.remove_prefix(static_cast<std::size_t>(length));
    } else {
      text.append("\xEF\xBF\xBD");
      bytes.remove_prefix(1);
      *changed = true;
    }
  }
  return text;
}

v1::Isolation IsolationOf(absl::string_view accelerator) {
  return accelerator == "kvm" ? v1::ISOLATION_HARDWARE : v1::ISOLATION_EMULATED;
}

v1::SandboxState ToProto(engine::SandboxState state) {
  switch (state) {
    case engine::SandboxState::kStarting: return v1::SANDBOX_STATE_STARTING;
    case engine::SandboxState::kRunning: return v1::SANDBOX_STATE_RUNNING;
    case engine::SandboxState::kPaused: return v1::SANDBOX_STATE_PAUSED;
    case engine::SandboxState::kBranching: return v1::SANDBOX_STATE_BRANCHING;
    case engine::SandboxState::kStopping: return v1::SANDBOX_STATE_DELETING;
    case engine::SandboxState::kFailed: return v1::SANDBOX_STATE_FAILED;
  }
  return v1::SANDBOX_STATE_UNSPECIFIED;
}

v1::SandboxInfo ToProto(const engine::SandboxView& view) {
  const engine::SandboxRow& row = view.row;
  v1::SandboxInfo info;
  info.set_id(row.id.str());
  info.set_snapshot_tag(row.snapshot_tag.str());
  if (!row.netns.empty()) { info.set_netns(row.netns); }
  info.set_guest_addr(kGuestAddress);
  info.set_created_at_unix(row.created_at_unix);
  if (row.pid != 0) { info.set_pid(static_cast<int32_t>(row.pid)); }
  if (row.memory_limit_mib.has_value()) { info.set_memory_limit_mib(*row.memory_limit_mib); }
  info.set_has_branched(row.branch_count > 0);
  info.set_branch_count(static_cast<int32_t>(row.branch_count));
  info.set_state(ToProto(row.state));
  info.set_vmm(row.vmm);
  info.set_accelerator(row.accelerator);
  info.set_isolation(IsolationOf(row.accelerator));
  info.mutable_labels()->insert(row.labels.begin(), row.labels.end());
  if (row.expires_at_unix.has_value()) { info.set_expires_at_unix(*row.expires_at_unix); }
  if (row.idle_timeout_secs.has_value()) { info.set_idle_timeout_secs(*row.idle_timeout_secs); }
  if (row.state == engine::SandboxState::kFailed) {
    v1::SandboxFailure* failure = info.mutable_failure();
    failure->set_reason(view.failure_reason.empty() ? "VMM_FAILED" : view.failure_reason);
    failure->set_message(row.failure);
    failure->set_failed_at_unix(view.failed_at_unix);
  }
  info.set_vcpus(row.vcpus);
  info.set_memory_mib(row.memory_mib);
  info.set_root_tag(row.root_tag.str());
  info.set_image(view.image);
  info.set_last_used_at_unix(view.last_used_at_unix);
  info.set_ready_ms(view.ready_ms);
  info.set_generation(view.generation);
  return info;
}

v1::CreateSandboxesResponse ToProto(const engine::ForkResult& result) {
  v1::CreateSandboxesResponse response;
  for (const engine::SandboxView& view : result.sandboxes) { *response.add_sandboxes() = ToProto(view); }
  for (const engine::ForkFailure& failure : result.failures) {
    v1::CreateFailure* to = response.add_failures();
    to->set_index(failure.index);
    to->set_code(static_cast<int>(failure.status.code()));
    to->set_reason(ReasonOf(failure.status));
    to->set_message(std::string(failure.status.message()));
  }
  return response;
}

v1::SnapshotInfo ToProto(const engine::SnapshotView& view) {
  const engine::SnapshotRow& row = view.row;
  v1::SnapshotInfo info;
  info.set_tag(row.tag.str());
  info.set_dir(view.dir);
  info.set_created_at_unix(row.created_at_unix);
  if (row.branched_from.has_value()) { info.set_branched_from(row.branched_from->str()); }
  const bool branch = row.kind == engine::SnapshotKind::kBranch;
  const bool ready = row.status == engine::SnapshotStatus::kReady;
  if (branch && ready) {
    info.set_pause_ms(view.pause_us > 0 ? (view.pause_us + 999) / 1000 : row.pause_ms);
    if (view.pause_us > 0) { info.set_pause_us(view.pause_us); }
  }
  if (!row.warning.empty()) { info.set_warning(row.warning); }
  switch (row.status) {
    case engine::SnapshotStatus::kWriting: info.set_status(v1::SNAPSHOT_STATUS_WRITING); break;
    case engine::SnapshotStatus::kReady: info.set_status(v1::SNAPSHOT_STATUS_READY); break;
    case engine::SnapshotStatus::kFailed: info.set_status(v1::SNAPSHOT_STATUS_FAILED); break;
  }
  info.set_bootable(ready);
  info.set_kind(branch ? v1::SNAPSHOT_KIND_BRANCH : v1::SNAPSHOT_KIND_ROOT);
  info.set_image(row.image);
  info.set_image_hash(view.image_hash);
  info.set_root_tag(row.root_tag.str());
  if (row.parent_tag.has_value()) { info.set_parent_tag(row.parent_tag->str()); }
  info.set_depth(row.depth);
  info.set_vmm(view.vmm);
  info.set_vmm_version(view.vmm_version);
  info.set_accelerator(view.accelerator);
  if (!view.accelerator.empty()) { info.set_isolation(IsolationOf(view.accelerator)); }
  info.set_vcpus(row.vcpus);
  info.set_memory_mib(row.memory_mib);
  info.set_stored_bytes(row.physical_bytes);
  info.set_device_state_bytes(view.device_state_bytes);
  info.set_page_count(row.page_count);
  info.set_agent_version(view.agent_version);
  info.mutable_labels()->insert(row.labels.begin(), row.labels.end());
  info.set_standby_target(view.standby.target);
  info.set_standby_ready(view.standby.ready);
  info.set_standby_hits(view.standby.hits);
  info.set_standby_misses(view.standby.misses);
  return info;
}

v1::SnapshotInfoDetail ToProto(const engine::Engine::SnapshotDetail& detail) {
  v1::SnapshotInfoDetail info;
  const engine::SnapshotRow& row = detail.view.row;
  info.set_tag(row.tag.str());
  info.set_dir(detail.view.dir);
  info.set_created_at_unix(row.created_at_unix);
  info.set_memory_logical_bytes(detail.sizes.memory_logical_bytes);
  info.set_memory_physical_bytes(detail.sizes.memory_physical_bytes);
  info.set_vmstate_bytes(detail.sizes.device_state_bytes);
  if (row.parent_tag.has_value()) { info.set_parent_tag(row.parent_tag->str()); }
  info.set_chain_depth(row.depth);
  for (const SnapshotTag& tag : detail.dependents.children) { info.add_dependents(tag.str()); }
  for (const SnapshotTag& tag : detail.ancestors) { info.add_ancestors(tag.str()); }
  for (const SandboxId& id : detail.dependents.sandboxes) { info.add_sandboxes(id.str()); }
  for (const snapshot::File& file : detail.manifest.files()) {
    v1::SnapshotFile* to = info.add_files();
    to->set_name(file.name());
    to->set_size_bytes(file.size_bytes());
    to->set_sha256(file.digest());
  }
  *info.mutable_snapshot() = ToProto(detail.view);
  return info;
}

absl::StatusOr<engine::CreateSnapshotSpec> ToSpec(const v1::CreateSnapshotRequest& request, std::string request_id) {
  FORKD_ASSIGN_OR_RETURN(SnapshotTag tag, SnapshotTag::Parse(request.tag()));
  engine::CreateSnapshotSpec spec(std::move(tag));
  const bool host_files = !request.kernel().empty() || !request.rootfs().empty();
  if (host_files == !request.image().empty()) {
    return InvalidField("image", "give either image, or kernel and rootfs");
  }
  if (host_files && request.kernel().empty()) { return InvalidField("kernel", "is required with rootfs"); }
  if (host_files && request.rootfs().empty()) { return InvalidField("rootfs", "is required with kernel"); }
  spec.image = request.image();
  spec.kernel = request.kernel();
  spec.rootfs = request.rootfs();
  spec.shape.vcpus = request.has_vcpus() ? request.vcpus() : 1;
  spec.shape.memory_mib = request.has_memory_mib() ? request.memory_mib() : 512;
  if (request.has_warmup()) { spec.warmup = request.warmup(); }
  spec.labels = ToLabels(request.labels());
  FORKD_RETURN_IF_ERROR(CheckLabels(spec.labels));
  spec.request_id = std::move(request_id);
  return spec;
}

absl::StatusOr<engine::ForkSpec> ToSpec(const v1::CreateSandboxesRequest& request, std::string request_id) {
  FORKD_ASSIGN_OR_RETURN(SnapshotTag tag, SnapshotTag::Parse(request.snapshot_tag(), "snapshot_tag"));
  engine::ForkSpec spec(std::move(tag));
  spec.n = request.has_n() ? request.n() : 1;
  spec.allow_partial = request.allow_partial();
  if (request.has_memory_limit_mib()) { spec.memory_limit_mib = request.memory_limit_mib(); }
  if (request.has_lifetime_secs()) { spec.lifetime_secs = request.lifetime_secs(); }
  if (request.has_idle_timeout_secs()) { spec.idle_timeout_secs = request.idle_timeout_secs(); }
  spec.labels = ToLabels(request.labels());
  FORKD_RETURN_IF_ERROR(CheckLabels(spec.labels));
  spec.request_id = std::move(request_id);
  return spec;
}

absl::StatusOr<engine::BranchSpec> ToSpec(const v1::BranchSandboxRequest& request, std::string request_id) {
  FORKD_ASSIGN_OR_RETURN(SandboxId id, SandboxId::Parse(request.id()));
  absl::StatusOr<SnapshotTag> tag = request.tag().empty() ? DefaultBranchTag(id, engine::NowUnix()) : SnapshotTag::Parse(request.tag());
  if (!tag.ok()) { return tag.status(); }
  // The contract's rules for the ways to ask for what is, here, one and the same operation.
  const bool legacy = request.diff() || request.live();
  if (request.has_mode() && legacy) {
    return InvalidField("mode", "set either `mode` (canonical) OR the legacy `diff` / `live` booleans, not both");
  }
  if (static_cast<int>(request.measure_diff()) + static_cast<int>(request.diff()) + static_cast<int>(request.live()) > 1) {
    return InvalidField("measure_diff", "set at most one of `measure_diff` / `diff` / `live` (or use `mode`)");
  }
  const bool live = request.live() || request.mode() == v1::BRANCH_MODE_LIVE;
  if (request.has_wait() && !request.wait() && !live) { return InvalidField("wait", "`wait: false` requires `live: true` (or `mode: \"live\"`)"); }
  engine::BranchSpec spec(std::move(id), *std::move(tag));
  spec.labels = ToLabels(request.labels());
  FORKD_RETURN_IF_ERROR(CheckLabels(spec.labels));
  spec.request_id = std::move(request_id);
  return spec;
}

absl::Status CheckGuestPath(absl::string_view path, absl::string_view field) {
  if (!absl::StartsWith(path, "/")) { return InvalidField(field, absl::StrCat("is ", Quoted(path), "; it must be absolute")); }
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") { return InvalidField(field, absl::StrCat("is ", Quoted(path), "; `..` is not allowed")); }
    if (part.size() > 255) { return InvalidField(field, "has a component of more than 255 bytes"); }
  }
  return absl::OkStatus();
}

template <typename Message>
absl::StatusOr<agent::v1::ExecStart> ToAgentExec(const Message& from, absl::string_view field_prefix) {
  agent::v1::ExecStart start;
  if (from.args(0).empty()) { return InvalidField(absl::StrCat(field_prefix, "args[0]"), "names no program"); }
  for (const std::string& arg : from.args()) { start.add_argv(arg); }
  for (const auto& [name, value] : from.env()) {
    if (name.empty() || absl::StrContains(name, "=")) {
      return InvalidField(absl::StrCat(field_prefix, "env"), absl::StrCat("variable name ", Quoted(name), " must not be empty or hold '='"));
    }
    start.add_env(absl::StrCat(name, "=", value));
  }
  if (!from.cwd().empty()) { FORKD_RETURN_IF_ERROR(CheckGuestPath(from.cwd(), absl::StrCat(field_prefix, "cwd"))); }
  start.set_cwd(from.cwd());
  start.set_user(from.user());
  return start;
}

template absl::StatusOr<agent::v1::ExecStart> ToAgentExec(const v1::ExecRequest& from, absl::string_view field_prefix);
template absl::StatusOr<agent::v1::ExecStart> ToAgentExec(const v1::ExecStart& from, absl::string_view field_prefix);

namespace {

// The agent's words for what kept a program from starting, in the contract's.
std::string ContractReason(const std::string& reason) {
  if (reason == "CWD_UNUSABLE") { return "BAD_CWD"; }
  if (reason == "USER_UNKNOWN") { return "BAD_USER"; }
  if (reason == "OUT_OF_RESOURCES") { return "NO_RESOURCES"; }
  if (reason == "BAD_FORMAT") { return "NOT_EXECUTABLE"; }
  return reason;
}

}  // namespace

template <typename Message>
void FillExecEnd(const agent::v1::ExecEnd& end, Message* to) {
  to->set_duration_ms(static_cast<int64_t>(end.duration_ns() / 1'000'000));
  bool changed = false;
  switch (end.outcome_case()) {
    case agent::v1::ExecEnd::kExitCode: to->set_exit_code(end.exit_code()); break;
    case agent::v1::ExecEnd::kSignal:
      to->set_exit_code(-end.signal());
      to->set_signal(end.signal());
      break;
    case agent::v1::ExecEnd::kTimedOut:
      to->set_exit_code(-9);
      to->set_timed_out(true);
      to->set_error("timed out: the process group was killed");
      break;
    case agent::v1::ExecEnd::kExecError: {
      // The shell's convention: 127 where there is no such program, 126 where it cannot be run.
      to->set_exit_code(end.exec_error().reason() == "NOT_FOUND" ? 127 : 126);
      to->mutable_exec_error()->set_reason(ContractReason(ToUtf8(end.exec_error().reason(), &changed)));
      to->mutable_exec_error()->set_message(ToUtf8(end.exec_error().message(), &changed));
      to->set_error(to->exec_error().message());
      break;
    }
    case agent::v1::ExecEnd::OUTCOME_NOT_SET:
      to->set_exit_code(1);
      to->set_error("the guest agent did not say how the program ended");
      break;
  }
}

template void FillExecEnd(const agent::v1::ExecEnd& end, v1::ExecResponse* to);
template void FillExecEnd(const agent::v1::ExecEnd& end, v1::ExecExit* to);

v1::FileInfo ToProto(const agent::v1::FileInfo& info, absl::string_view path) {
  v1::FileInfo to;
  bool changed = false;
  to.set_path(ToUtf8(path, &changed));
  const absl::string_view own = path.substr(path.rfind('/') + 1);
  to.set_name(ToUtf8(own, &changed));
  switch (info.type()) {
    case agent::v1::FILE_TYPE_REGULAR: to.set_type(v1::FILE_TYPE_FILE); break;
    case agent::v1::FILE_TYPE_DIRECTORY: to.set_type(v1::FILE_TYPE_DIRECTORY); break;
    case agent::v1::FILE_TYPE_SYMLINK: to.set_type(v1::FILE_TYPE_SYMLINK); break;
    default: to.set_type(v1::FILE_TYPE_OTHER); break;
  }
  to.set_size_bytes(static_cast<int64_t>(info.size_bytes()));
  to.set_mode(static_cast<int32_t>(info.mode()));
  to.set_uid(static_cast<int32_t>(info.uid()));
  to.set_gid(static_cast<int32_t>(info.gid()));
  to.set_modified_at_unix(info.mtime_ns() / 1'000'000'000);
  to.set_link_target(ToUtf8(info.link_target(), &changed));
  return to;
}

}  // namespace forkd::server
