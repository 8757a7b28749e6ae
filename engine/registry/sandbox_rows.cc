#include "engine/registry/sandbox_rows.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/registry/labels_json.h"

namespace forkd::engine {
namespace {

// In the order of ReadRow.
#define FORKD_SANDBOX_COLUMNS                                                                                                                 \
  "id, snapshot_tag, root_tag, state, vmm, accelerator, isolation, pid, start_time, run_dir, netns, labels, created_at_unix, "                \
  "expires_at_unix, idle_timeout_secs, memory_limit_mib, memory_mib, vcpus, branch_count, failure, request_id, generation"

absl::Status Unknown(const SandboxId& id) {
  return Error(absl::StatusCode::kNotFound, Reason::kSandboxUnknown, absl::StrCat("sandbox ", Quoted(id.str()), " does not exist"))
      .Meta("id", id.str())
      .Resource("sandbox", id.str());
}

absl::Status Unreadable(absl::string_view column, absl::string_view value) {
  return Error(absl::StatusCode::kInternal, Reason::kRegistry, absl::StrCat("registry: sandboxes.", column, " is ", Quoted(value)));
}

absl::StatusOr<SandboxRow> ReadRow(const Statement& s) {
  absl::StatusOr<SandboxId> id = SandboxId::Parse(s.Text(0));
  if (!id.ok()) { return Unreadable("id", s.Text(0)); }
  absl::StatusOr<SnapshotTag> snapshot = SnapshotTag::Parse(s.Text(1));
  if (!snapshot.ok()) { return Unreadable("snapshot_tag", s.Text(1)); }
  absl::StatusOr<SnapshotTag> root = SnapshotTag::Parse(s.Text(2));
  if (!root.ok()) { return Unreadable("root_tag", s.Text(2)); }
  const std::optional<SandboxState> state = SandboxStateFromName(s.Text(3));
  if (!state.has_value()) { return Unreadable("state", s.Text(3)); }
  SandboxRow row(*std::move(id), *std::move(snapshot), *std::move(root));
  row.state = *state;
  row.vmm = s.Text(4);
  row.accelerator = s.Text(5);
  row.isolation = s.Text(6);
  row.pid = s.Int(7);
  row.start_time = static_cast<std::uint64_t>(s.Int(8));
  row.run_dir = s.Text(9);
  row.netns = s.Text(10);
  FORKD_ASSIGN_OR_RETURN(row.labels, LabelsFromJson(s.Text(11)));
  row.created_at_unix = s.Int(12);
  row.expires_at_unix = s.OptionalInt(13);
  row.idle_timeout_secs = s.OptionalInt(14);
  row.memory_limit_mib = s.OptionalInt(15);
  row.memory_mib = s.Int(16);
  row.vcpus = static_cast<std::int32_t>(s.Int(17));
  row.branch_count = s.Int(18);
  row.failure = s.Text(19);
  row.request_id = s.Text(20);
  row.generation = s.Int(21);
  return row;
}

}  // namespace

absl::Status InsertSandbox(Database& db, const SandboxRow& row) {
  FORKD_ASSIGN_OR_RETURN(const std::string labels, LabelsToJson(row.labels));
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("INSERT INTO sandboxes (" FORKD_SANDBOX_COLUMNS
                                                 ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,1)"));
  s.Bind(row.id.str()).Bind(row.snapshot_tag.str()).Bind(row.root_tag.str()).Bind(SandboxStateName(row.state));
  s.Bind(row.vmm).Bind(row.accelerator).Bind(row.isolation).Bind(row.pid).Bind(static_cast<std::int64_t>(row.start_time));
  s.Bind(row.run_dir).Bind(row.netns).Bind(labels).Bind(row.created_at_unix);
  s.Bind(row.expires_at_unix).Bind(row.idle_timeout_secs).Bind(row.memory_limit_mib);
  s.Bind(row.memory_mib).Bind(std::int64_t{row.vcpus}).Bind(row.branch_count).Bind(row.failure).Bind(row.request_id);
  return s.Run();
}

absl::StatusOr<std::int64_t> UpdateSandbox(Database& db, const SandboxRow& row) {
  FORKD_ASSIGN_OR_RETURN(const std::string labels, LabelsToJson(row.labels));
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("UPDATE sandboxes SET state=?, vmm=?, accelerator=?, isolation=?, pid=?, start_time=?, run_dir=?, "
                                                 "netns=?, labels=?, expires_at_unix=?, idle_timeout_secs=?, memory_limit_mib=?, memory_mib=?, "
                                                 "vcpus=?, branch_count=?, failure=?, request_id=?, generation=generation+1 "
                                                 "WHERE id=? AND generation=?"));
  s.Bind(SandboxStateName(row.state)).Bind(row.vmm).Bind(row.accelerator).Bind(row.isolation);
  s.Bind(row.pid).Bind(static_cast<std::int64_t>(row.start_time)).Bind(row.run_dir).Bind(row.netns).Bind(labels);
  s.Bind(row.expires_at_unix).Bind(row.idle_timeout_secs).Bind(row.memory_limit_mib);
  s.Bind(row.memory_mib).Bind(std::int64_t{row.vcpus}).Bind(row.branch_count).Bind(row.failure).Bind(row.request_id);
  s.Bind(row.id.str()).Bind(row.generation);
  FORKD_RETURN_IF_ERROR(s.Run());
  if (db.changes() == 1) { return row.generation + 1; }
  FORKD_ASSIGN_OR_RETURN(const SandboxRow stored, GetSandbox(db, row.id));
  return Error(absl::StatusCode::kAborted, Reason::kSandboxBusy,
               absl::StrCat("sandbox ", Quoted(row.id.str()), " was changed meanwhile: generation ", stored.generation, ", not ", row.generation))
      .Meta("id", row.id.str());
}

absl::StatusOr<SandboxRow> SetSandboxState(Database& db, const SandboxId& id, absl::Span<const SandboxState> from, SandboxState to,
                                           absl::string_view failure) {
  FORKD_ASSIGN_OR_RETURN(SandboxRow row, GetSandbox(db, id));
  if (std::find(from.begin(), from.end(), row.state) == from.end()) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kSandboxNotRunning,
                 absl::StrCat("sandbox ", Quoted(id.str()), " is ", SandboxStateName(row.state)))
        .Meta("id", id.str())
        .Meta("state", SandboxStateName(row.state));
  }
  row.state = to;
  row.failure = std::string(failure);
  FORKD_ASSIGN_OR_RETURN(row.generation, UpdateSandbox(db, row));
  return row;
}

absl::StatusOr<bool> DeleteSandbox(Database& db, const SandboxId& id) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("DELETE FROM sandboxes WHERE id=?"));
  FORKD_RETURN_IF_ERROR(s.Bind(id.str()).Run());
  return db.changes() == 1;
}

absl::StatusOr<SandboxRow> GetSandbox(Database& db, const SandboxId& id) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT " FORKD_SANDBOX_COLUMNS " FROM sandboxes WHERE id=?"));
  FORKD_ASSIGN_OR_RETURN(const bool found, s.Bind(id.str()).Step());
  if (!found) { return Unknown(id); }
  return ReadRow(s);
}

absl::StatusOr<std::vector<SandboxRow>> ListSandboxes(Database& db) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT " FORKD_SANDBOX_COLUMNS " FROM sandboxes ORDER BY id"));
  std::vector<SandboxRow> rows;
  for (;;) {
    FORKD_ASSIGN_OR_RETURN(const bool more, s.Step());
    if (!more) { return rows; }
    FORKD_ASSIGN_OR_RETURN(SandboxRow row, ReadRow(s));
    rows.push_back(std::move(row));
  }
}

absl::StatusOr<std::vector<SandboxId>> SandboxesOn(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT id FROM sandboxes WHERE (snapshot_tag=?1 OR root_tag=?1) AND state<>'FAILED' ORDER BY id"));
  s.Bind(tag.str());
  std::vector<SandboxId> ids;
  for (;;) {
    FORKD_ASSIGN_OR_RETURN(const bool more, s.Step());
    if (!more) { return ids; }
    absl::StatusOr<SandboxId> id = SandboxId::Parse(s.Text(0));
    if (!id.ok()) { return Unreadable("id", s.Text(0)); }
    ids.push_back(*std::move(id));
  }
}

}  // namespace forkd::engine
