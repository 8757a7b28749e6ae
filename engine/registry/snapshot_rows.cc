#include "engine/registry/snapshot_rows.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/registry/labels_json.h"

namespace forkd::engine {
namespace {

// In the order of ReadRow.
#define FORKD_SNAPSHOT_COLUMNS                                                                                                                \
  "tag, root_tag, status, kind, parent_tag, branched_from, created_at_unix, depth, pause_ms, memory_bytes, page_count, physical_bytes, "      \
  "memory_mib, vcpus, image, captured, warning, labels, request_id"

absl::Status Unknown(const SnapshotTag& tag) {
  return Error(absl::StatusCode::kNotFound, Reason::kSnapshotUnknown, absl::StrCat("snapshot ", Quoted(tag.str()), " does not exist"))
      .Meta("tag", tag.str())
      .Resource("snapshot", tag.str());
}

absl::Status NotIn(const SnapshotRow& row, absl::string_view wanted) {
  const absl::string_view status = SnapshotStatusName(row.status);
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotNotReady,
               absl::StrCat("snapshot ", Quoted(row.tag.str()), " is ", status, ", not ", wanted, row.warning.empty() ? "" : ": ", row.warning))
      .Meta("tag", row.tag.str())
      .Meta("status", status);
}

absl::Status Unreadable(absl::string_view column, absl::string_view value) {
  return Error(absl::StatusCode::kInternal, Reason::kRegistry, absl::StrCat("registry: snapshots.", column, " is ", Quoted(value)));
}

absl::StatusOr<SnapshotRow> ReadRow(const Statement& s) {
  absl::StatusOr<SnapshotTag> tag = SnapshotTag::Parse(s.Text(0));
  if (!tag.ok()) { return Unreadable("tag", s.Text(0)); }
  absl::StatusOr<SnapshotTag> root = SnapshotTag::Parse(s.Text(1));
  if (!root.ok()) { return Unreadable("root_tag", s.Text(1)); }
  SnapshotRow row(*std::move(tag), *std::move(root));
  const std::optional<SnapshotStatus> status = SnapshotStatusFromName(s.Text(2));
  if (!status.has_value()) { return Unreadable("status", s.Text(2)); }
  row.status = *status;
  const std::optional<SnapshotKind> kind = SnapshotKindFromName(s.Text(3));
  if (!kind.has_value()) { return Unreadable("kind", s.Text(3)); }
  row.kind = *kind;
  if (!s.IsNull(4)) {
    absl::StatusOr<SnapshotTag> parent = SnapshotTag::Parse(s.Text(4));
    if (!parent.ok()) { return Unreadable("parent_tag", s.Text(4)); }
    row.parent_tag = *std::move(parent);
  }
  if (!s.IsNull(5)) {
    absl::StatusOr<SandboxId> source = SandboxId::Parse(s.Text(5));
    if (!source.ok()) { return Unreadable("branched_from", s.Text(5)); }
    row.branched_from = *std::move(source);
  }
  row.created_at_unix = s.Int(6);
  row.depth = static_cast<std::int32_t>(s.Int(7));
  row.pause_ms = s.Int(8);
  row.memory_bytes = s.Int(9);
  row.page_count = s.Int(10);
  row.physical_bytes = s.Int(11);
  row.memory_mib = s.Int(12);
  row.vcpus = static_cast<std::int32_t>(s.Int(13));
  row.image = s.Text(14);
  row.captured = s.Text(15);
  row.warning = s.Text(16);
  FORKD_ASSIGN_OR_RETURN(row.labels, LabelsFromJson(s.Text(17)));
  row.request_id = s.Text(18);
  return row;
}

absl::StatusOr<std::vector<SnapshotTag>> ReadTags(Statement& s) {
  std::vector<SnapshotTag> tags;
  for (;;) {
    FORKD_ASSIGN_OR_RETURN(const bool more, s.Step());
    if (!more) { return tags; }
    absl::StatusOr<SnapshotTag> tag = SnapshotTag::Parse(s.Text(0));
    if (!tag.ok()) { return Unreadable("tag", s.Text(0)); }
    tags.push_back(*std::move(tag));
  }
}

template <typename Name>
std::optional<std::string> TextOf(const std::optional<Name>& name) {
  return name.has_value() ? std::optional<std::string>(name->str()) : std::nullopt;
}

absl::Status CheckWriting(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(const SnapshotRow row, GetSnapshot(db, tag));
  return row.status == SnapshotStatus::kWriting ? absl::OkStatus() : NotIn(row, "being written");
}

}  // namespace

absl::Status InsertSnapshot(Database& db, const SnapshotRow& row) {
  if (row.kind == SnapshotKind::kBranch) { FORKD_RETURN_IF_ERROR(CheckReady(db, row.root_tag)); }
  FORKD_ASSIGN_OR_RETURN(const std::string labels, LabelsToJson(row.labels));
  FORKD_ASSIGN_OR_RETURN(Statement s,
                         db.Prepare("INSERT INTO snapshots (" FORKD_SNAPSHOT_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"));
  s.Bind(row.tag.str()).Bind(row.root_tag.str()).Bind(SnapshotStatusName(row.status)).Bind(SnapshotKindName(row.kind));
  s.BindOptionalText(TextOf(row.parent_tag)).BindOptionalText(TextOf(row.branched_from)).Bind(row.created_at_unix).Bind(std::int64_t{row.depth});
  s.Bind(row.pause_ms).Bind(row.memory_bytes).Bind(row.page_count).Bind(row.physical_bytes).Bind(row.memory_mib).Bind(std::int64_t{row.vcpus});
  s.Bind(row.image).Bind(row.captured).Bind(row.warning).Bind(labels).Bind(row.request_id);
  const absl::Status status = s.Run();
  if (!absl::IsAlreadyExists(status)) { return status; }
  return Error(absl::StatusCode::kAlreadyExists, Reason::kTagTaken, absl::StrCat("snapshot ", Quoted(row.tag.str()), " exists"))
      .Meta("tag", row.tag.str())
      .Resource("snapshot", row.tag.str());
}

absl::Status MarkSnapshotReady(Database& db, const SnapshotRow& row) {
  FORKD_RETURN_IF_ERROR(CheckWriting(db, row.tag));
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("UPDATE snapshots SET status='ready', pause_ms=?, memory_bytes=?, page_count=?, physical_bytes=?, "
                                                 "memory_mib=?, vcpus=?, image=?, captured=?, warning=? WHERE tag=?"));
  s.Bind(row.pause_ms).Bind(row.memory_bytes).Bind(row.page_count).Bind(row.physical_bytes).Bind(row.memory_mib).Bind(std::int64_t{row.vcpus});
  return s.Bind(row.image).Bind(row.captured).Bind(row.warning).Bind(row.tag.str()).Run();
}

absl::Status MarkSnapshotFailed(Database& db, const SnapshotTag& tag, absl::string_view warning) {
  FORKD_RETURN_IF_ERROR(CheckWriting(db, tag));
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("UPDATE snapshots SET status='failed', warning=? WHERE tag=?"));
  return s.Bind(warning).Bind(tag.str()).Run();
}

absl::StatusOr<bool> DeleteSnapshot(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("DELETE FROM snapshots WHERE tag=?"));
  FORKD_RETURN_IF_ERROR(s.Bind(tag.str()).Run());
  return db.changes() == 1;
}

absl::StatusOr<SnapshotRow> GetSnapshot(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT " FORKD_SNAPSHOT_COLUMNS " FROM snapshots WHERE tag=?"));
  FORKD_ASSIGN_OR_RETURN(const bool found, s.Bind(tag.str()).Step());
  if (!found) { return Unknown(tag); }
  return ReadRow(s);
}

absl::StatusOr<std::vector<SnapshotRow>> ListSnapshots(Database& db) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT " FORKD_SNAPSHOT_COLUMNS " FROM snapshots ORDER BY tag"));
  std::vector<SnapshotRow> rows;
  for (;;) {
    FORKD_ASSIGN_OR_RETURN(const bool more, s.Step());
    if (!more) { return rows; }
    FORKD_ASSIGN_OR_RETURN(SnapshotRow row, ReadRow(s));
    rows.push_back(std::move(row));
  }
}

absl::StatusOr<std::vector<SnapshotTag>> Lineage(Database& db, const SnapshotTag& tag) {
  FORKD_RETURN_IF_ERROR(GetSnapshot(db, tag).status());
  // UNION drops what was seen before, so that a cycle, which a damaged file could have, ends. The order is by distance.
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("WITH RECURSIVE line(tag, parent, distance) AS ("
                                                 " SELECT tag, parent_tag, 0 FROM snapshots WHERE tag=?"
                                                 " UNION SELECT s.tag, s.parent_tag, line.distance+1 FROM snapshots s JOIN line ON s.tag=line.parent"
                                                 " WHERE line.distance < 1000000)"
                                                 " SELECT tag FROM line ORDER BY distance DESC"));
  return ReadTags(s.Bind(tag.str()));
}

absl::Status CheckReady(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(const SnapshotRow row, GetSnapshot(db, tag));
  return row.status == SnapshotStatus::kReady ? absl::OkStatus() : NotIn(row, "ready");
}

absl::StatusOr<std::vector<SnapshotTag>> ChildrenOf(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT tag FROM snapshots WHERE parent_tag=? AND status<>'failed' ORDER BY tag"));
  return ReadTags(s.Bind(tag.str()));
}

absl::StatusOr<std::vector<SnapshotTag>> DescendantsOf(Database& db, const SnapshotTag& tag) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT tag FROM snapshots WHERE root_tag=?1 AND tag<>?1 AND status<>'failed' ORDER BY tag"));
  return ReadTags(s.Bind(tag.str()));
}

}  // namespace forkd::engine
