#include "engine/registry/registry.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "base/error.h"
#include "base/status_macros.h"
#include "engine/registry/database.h"
#include "engine/registry/idempotency_rows.h"
#include "engine/registry/sandbox_rows.h"
#include "engine/registry/schema.h"
#include "engine/registry/snapshot_rows.h"

namespace forkd::engine {
namespace {

constexpr char kFileName[] = "registry.db";
// Names in an error message; the metadata is cut at 256 bytes anyway.
constexpr std::size_t kMaxNamed = 10;

// What a commit survives: kill -9 (normal), or a power cut too (full).
enum class Durability { kNormal, kFull };

absl::StatusOr<Dependents> FindDependents(Database& db, const SnapshotTag& tag) {
  Dependents dependents;
  FORKD_ASSIGN_OR_RETURN(dependents.children, ChildrenOf(db, tag));
  FORKD_ASSIGN_OR_RETURN(dependents.descendants, DescendantsOf(db, tag));
  FORKD_ASSIGN_OR_RETURN(dependents.sandboxes, SandboxesOn(db, tag));
  return dependents;
}

template <typename Name>
std::string Names(const std::vector<Name>& names) {
  const auto append = [](std::string* out, const Name& name) { out->append(name.str()); };
  const std::size_t shown = std::min(names.size(), kMaxNamed);
  return absl::StrCat(absl::StrJoin(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", ", append),
                      names.size() > shown ? absl::StrCat(" and ", names.size() - shown, " more") : "");
}

absl::Status HasDependents(const SnapshotTag& tag, const Dependents& dependents) {
  // A root's descendants include its children; a branch has children alone.
  const std::vector<SnapshotTag>& snapshots = dependents.descendants.empty() ? dependents.children : dependents.descendants;
  std::string what;
  if (!snapshots.empty()) { absl::StrAppend(&what, " snapshots ", Names(snapshots)); }
  if (!dependents.sandboxes.empty()) { absl::StrAppend(&what, what.empty() ? "" : ";", " sandboxes ", Names(dependents.sandboxes)); }
  return Error(absl::StatusCode::kFailedPrecondition, Reason::kSnapshotHasDependents,
               absl::StrCat("snapshot ", Quoted(tag.str()), " is used by", what, "; delete them first, or cascade"))
      .Meta("tag", tag.str())
      .Meta("snapshots", Names(snapshots))
      .Meta("sandboxes", Names(dependents.sandboxes));
}

}  // namespace

struct Registry::Impl {
  absl::Mutex mutex;
  std::unique_ptr<Database> db ABSL_PT_GUARDED_BY(mutex);

  // Runs `body(Database&)`, which returns Status or StatusOr, as one write transaction.
  template <typename Body>
  auto Write(Body body, Durability durability = Durability::kNormal) {
    using Result = std::invoke_result_t<Body, Database&>;
    absl::MutexLock lock(&mutex);
    // The pragma does nothing inside a transaction, so it stands around it, under the same lock.
    if (durability == Durability::kFull) {
      if (const absl::Status status = db->Execute("PRAGMA synchronous=FULL"); !status.ok()) { return Result(status); }
    }
    Result result = absl::UnknownError("not run");
    Database& locked = *db;  // the analysis does not look into lambdas
    const absl::Status committed = locked.Transaction([&]() -> absl::Status {
      result = body(locked);
      if constexpr (std::is_same_v<Result, absl::Status>) {
        return result;
      } else {
        return result.status();
      }
    });
    // Should this fail, later commits are slower, which is no reason to call this one failed.
    if (durability == Durability::kFull) { (void)db->Execute("PRAGMA synchronous=NORMAL"); }
    // What was not committed has not happened, whatever the body answered.
    return committed.ok() ? std::move(result) : Result(committed);
  }

  // No transaction is needed for several SELECTs to see one state: whoever writes holds the mutex.
  template <typename Body>
  auto Read(Body body) {
    absl::MutexLock lock(&mutex);
    return body(*db);
  }
};

Registry::Registry(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Registry::~Registry() = default;

absl::StatusOr<std::unique_ptr<Registry>> Registry::OpenBlocking(const std::string& state_dir) {
  auto impl = std::make_unique<Impl>();
  FORKD_ASSIGN_OR_RETURN(impl->db, Database::OpenBlocking(absl::StrCat(state_dir, "/", kFileName), kMigrations));
  return std::unique_ptr<Registry>(new Registry(std::move(impl)));
}

bool Registry::created() const { return impl_->Read([](const Database& db) { return db.created(); }); }

// ---- Sandboxes ----

absl::Status Registry::InsertSandboxesBlocking(absl::Span<const SandboxRow> rows) {
  return impl_->Write([&](Database& db) -> absl::Status {
    const SnapshotTag* checked = nullptr;  // rows of one call share their snapshot
    for (const SandboxRow& row : rows) {
      if (checked == nullptr || *checked != row.snapshot_tag) {
        FORKD_RETURN_IF_ERROR(CheckReady(db, row.snapshot_tag));
        if (row.root_tag != row.snapshot_tag) { FORKD_RETURN_IF_ERROR(CheckReady(db, row.root_tag)); }
        checked = &row.snapshot_tag;
      }
      FORKD_RETURN_IF_ERROR(InsertSandbox(db, row));
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::int64_t> Registry::UpdateSandboxBlocking(const SandboxRow& row) {
  return impl_->Write([&](Database& db) { return UpdateSandbox(db, row); });
}

absl::StatusOr<std::vector<std::int64_t>> Registry::UpdateSandboxesBlocking(absl::Span<const SandboxRow> rows,
                                                                            const std::optional<IdempotentResult>& result) {
  return impl_->Write([&](Database& db) -> absl::StatusOr<std::vector<std::int64_t>> {
    std::vector<std::int64_t> generations;
    for (const SandboxRow& row : rows) {
      FORKD_ASSIGN_OR_RETURN(const std::int64_t generation, UpdateSandbox(db, row));
      generations.push_back(generation);
    }
    if (result.has_value()) { FORKD_RETURN_IF_ERROR(FinishIdempotent(db, *result)); }
    return generations;
  });
}

absl::StatusOr<SandboxRow> Registry::SetSandboxStateBlocking(const SandboxId& id, absl::Span<const SandboxState> from, SandboxState to,
                                                             absl::string_view failure) {
  return impl_->Write([&](Database& db) { return SetSandboxState(db, id, from, to, failure); });
}

absl::StatusOr<bool> Registry::DeleteSandboxBlocking(const SandboxId& id) {
  return impl_->Write([&](Database& db) { return DeleteSandbox(db, id); });
}

absl::Status Registry::DeleteSandboxesBlocking(absl::Span<const SandboxId> ids) {
  return impl_->Write([&](Database& db) -> absl::Status {
    for (const SandboxId& id : ids) { FORKD_RETURN_IF_ERROR(DeleteSandbox(db, id).status()); }
    return absl::OkStatus();
  });
}

absl::StatusOr<SandboxRow> Registry::GetSandboxBlocking(const SandboxId& id) {
  return impl_->Read([&](Database& db) { return GetSandbox(db, id); });
}

absl::StatusOr<std::vector<SandboxRow>> Registry::ListSandboxesBlocking() {
  return impl_->Read([](Database& db) { return ListSandboxes(db); });
}

// ---- Snapshots ----

absl::Status Registry::InsertSnapshotBlocking(const SnapshotRow& row) {
  return impl_->Write([&](Database& db) { return InsertSnapshot(db, row); });
}

absl::Status Registry::MarkSnapshotReadyBlocking(const SnapshotRow& row, const std::optional<IdempotentResult>& result) {
  const auto mark = [&](Database& db) -> absl::Status {
    FORKD_RETURN_IF_ERROR(MarkSnapshotReady(db, row));
    return result.has_value() ? FinishIdempotent(db, *result) : absl::OkStatus();
  };
  return impl_->Write(mark, Durability::kFull);
}

absl::Status Registry::MarkSnapshotFailedBlocking(const SnapshotTag& tag, absl::string_view warning) {
  return impl_->Write([&](Database& db) { return MarkSnapshotFailed(db, tag, warning); });
}

absl::StatusOr<bool> Registry::DeleteSnapshotBlocking(const SnapshotTag& tag, DependentsRule rule) {
  return impl_->Write([&](Database& db) -> absl::StatusOr<bool> {
    if (rule == DependentsRule::kRefuse) {
      FORKD_ASSIGN_OR_RETURN(const Dependents dependents, FindDependents(db, tag));
      if (!dependents.empty()) { return HasDependents(tag, dependents); }
    }
    return DeleteSnapshot(db, tag);
  });
}

absl::StatusOr<SnapshotRow> Registry::GetSnapshotBlocking(const SnapshotTag& tag) {
  return impl_->Read([&](Database& db) { return GetSnapshot(db, tag); });
}

absl::StatusOr<std::vector<SnapshotRow>> Registry::ListSnapshotsBlocking() {
  return impl_->Read([](Database& db) { return ListSnapshots(db); });
}

absl::StatusOr<Dependents> Registry::DependentsBlocking(const SnapshotTag& tag) {
  return impl_->Read([&](Database& db) { return FindDependents(db, tag); });
}

absl::StatusOr<std::vector<SnapshotTag>> Registry::LineageBlocking(const SnapshotTag& tag) {
  return impl_->Read([&](Database& db) { return Lineage(db, tag); });
}

// ---- Idempotency ----

absl::StatusOr<IdempotentStart> Registry::BeginIdempotentBlocking(const IdempotencyKey& key, std::int64_t now_unix) {
  return impl_->Write([&](Database& db) { return BeginIdempotent(db, key, now_unix); });
}

absl::Status Registry::FinishIdempotentBlocking(const IdempotentResult& result) {
  return impl_->Write([&](Database& db) { return FinishIdempotent(db, result); });
}

absl::Status Registry::AbandonIdempotentBlocking(const std::string& key) {
  return impl_->Write([&](Database& db) { return AbandonIdempotent(db, key); });
}

absl::StatusOr<int> Registry::AbandonAllIdempotentBlocking() {
  return impl_->Write([](Database& db) { return AbandonAllIdempotent(db); });
}

absl::StatusOr<int> Registry::SweepIdempotencyBlocking(std::int64_t now_unix) {
  return impl_->Write([&](Database& db) { return SweepIdempotency(db, now_unix); });
}

}  // namespace forkd::engine
