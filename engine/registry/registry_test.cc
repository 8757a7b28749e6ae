#include "engine/registry/registry.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/registry/database.h"

namespace forkd::engine {
namespace {

SnapshotTag Tag(absl::string_view text) { return *SnapshotTag::Parse(text); }
SandboxId Id(int sequence) { return *SandboxId::Parse(absl::StrCat("sb-6a60c2f1-000", sequence)); }

class RegistryTest : public ::testing::Test {
 protected:
  RegistryTest() {
    std::string dir = ::testing::TempDir() + "/registry-XXXXXX";
    EXPECT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
    Open();
  }
  ~RegistryTest() override {
    registry_.reset();
    std::filesystem::remove_all(dir_);
  }

  void Open() {
    registry_.reset();
    absl::StatusOr<std::unique_ptr<Registry>> opened = Registry::OpenBlocking(dir_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    registry_ = *std::move(opened);
  }

  void AddRoot(absl::string_view tag) {
    SnapshotRow row(Tag(tag), Tag(tag));
    ASSERT_TRUE(registry_->InsertSnapshotBlocking(row).ok());
    ASSERT_TRUE(registry_->MarkSnapshotReadyBlocking(row, std::nullopt).ok());
  }
  void AddBranch(absl::string_view tag, absl::string_view parent, absl::string_view root) {
    SnapshotRow row(Tag(tag), Tag(root));
    row.kind = SnapshotKind::kBranch;
    row.parent_tag = Tag(parent);
    row.branched_from = Id(1);
    row.depth = 1;
    ASSERT_TRUE(registry_->InsertSnapshotBlocking(row).ok());
    ASSERT_TRUE(registry_->MarkSnapshotReadyBlocking(row, std::nullopt).ok());
  }

  // Runs SQL on a connection of its own, as a person with a shell would.
  void Sql(const std::string& sql) {
    sqlite3* connection = nullptr;
    ASSERT_EQ(sqlite3_open((dir_ + "/registry.db").c_str(), &connection), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(connection, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(connection);
    sqlite3_close(connection);
  }

  std::string dir_;
  std::unique_ptr<Registry> registry_;
};

SandboxRow FullRow() {
  SandboxRow row(Id(3), Tag("py"), Tag("py"));
  row.state = SandboxState::kStarting;
  row.vmm = "qemu";
  row.accelerator = "tcg";
  row.isolation = "emulated";
  row.pid = 4242;
  row.start_time = 987654321;
  row.run_dir = "run/sb-6a60c2f1-0003";
  row.netns = "forkd-child-1";
  row.labels = {{"team", "blue \"quoted\" ü"}, {"zeta", ""}};
  row.created_at_unix = 1785000000;
  row.expires_at_unix = 1785000600;
  row.idle_timeout_secs = 60;
  row.memory_limit_mib = 512;
  row.memory_mib = 256;
  row.vcpus = 2;
  row.branch_count = 7;
  row.failure = "none";
  row.request_id = "r-1";
  return row;
}

void ExpectEqual(const SandboxRow& a, const SandboxRow& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.snapshot_tag, b.snapshot_tag);
  EXPECT_EQ(a.root_tag, b.root_tag);
  EXPECT_EQ(a.state, b.state);
  EXPECT_EQ(a.vmm, b.vmm);
  EXPECT_EQ(a.accelerator, b.accelerator);
  EXPECT_EQ(a.isolation, b.isolation);
  EXPECT_EQ(a.pid, b.pid);
  EXPECT_EQ(a.start_time, b.start_time);
  EXPECT_EQ(a.run_dir, b.run_dir);
  EXPECT_EQ(a.netns, b.netns);
  EXPECT_EQ(a.labels, b.labels);
  EXPECT_EQ(a.created_at_unix, b.created_at_unix);
  EXPECT_EQ(a.expires_at_unix, b.expires_at_unix);
  EXPECT_EQ(a.idle_timeout_secs, b.idle_timeout_secs);
  EXPECT_EQ(a.memory_limit_mib, b.memory_limit_mib);
  EXPECT_EQ(a.memory_mib, b.memory_mib);
  EXPECT_EQ(a.vcpus, b.vcpus);
  EXPECT_EQ(a.branch_count, b.branch_count);
  EXPECT_EQ(a.failure, b.failure);
  EXPECT_EQ(a.request_id, b.request_id);
}

TEST_F(RegistryTest, SandboxSurvivesARestartWithEveryField) {
  AddRoot("py");
  const SandboxRow row = FullRow();
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({row}).ok());
  Open();
  const absl::StatusOr<SandboxRow> read = registry_->GetSandboxBlocking(row.id);
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectEqual(*read, row);
  EXPECT_EQ(read->generation, 1);
}

TEST_F(RegistryTest, SandboxWithoutLimitsReadsBackWithoutLimits) {
  AddRoot("py");
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({SandboxRow(Id(1), Tag("py"), Tag("py"))}).ok());
  const absl::StatusOr<SandboxRow> read = registry_->GetSandboxBlocking(Id(1));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->expires_at_unix, std::nullopt);
  EXPECT_EQ(read->idle_timeout_secs, std::nullopt);
  EXPECT_EQ(read->memory_limit_mib, std::nullopt);
}

TEST_F(RegistryTest, LabelThatIsNotUtf8IsRefused) {
  AddRoot("py");
  SandboxRow row(Id(1), Tag("py"), Tag("py"));
  row.labels = {{"k", "\xff"}};
  EXPECT_EQ(ReasonOf(registry_->InsertSandboxesBlocking({row})), "INVALID_FIELD");
  EXPECT_TRUE(registry_->ListSandboxesBlocking()->empty());
}

TEST_F(RegistryTest, SandboxesAreInsertedAllOrNone) {
  AddRoot("py");
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({SandboxRow(Id(2), Tag("py"), Tag("py"))}).ok());
  const std::vector<SandboxRow> rows = {SandboxRow(Id(1), Tag("py"), Tag("py")), SandboxRow(Id(2), Tag("py"), Tag("py"))};
  EXPECT_EQ(registry_->InsertSandboxesBlocking(rows).code(), absl::StatusCode::kAlreadyExists);
  const absl::StatusOr<std::vector<SandboxRow>> list = registry_->ListSandboxesBlocking();
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ((*list)[0].id, Id(2));
}

TEST_F(RegistryTest, SandboxNeedsAReadySnapshot) {
  EXPECT_EQ(ReasonOf(registry_->InsertSandboxesBlocking({SandboxRow(Id(1), Tag("none"), Tag("none"))})), "SNAPSHOT_UNKNOWN");
  ASSERT_TRUE(registry_->InsertSnapshotBlocking(SnapshotRow(Tag("new"), Tag("new"))).ok());
  const absl::Status status = registry_->InsertSandboxesBlocking({SandboxRow(Id(1), Tag("new"), Tag("new"))});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "SNAPSHOT_NOT_READY");
}

TEST_F(RegistryTest, SandboxesAreListedInTheOrderOfTheirIds) {
  AddRoot("py");
  const std::vector<SandboxRow> rows = {SandboxRow(Id(3), Tag("py"), Tag("py")), SandboxRow(Id(1), Tag("py"), Tag("py")),
                                        SandboxRow(Id(2), Tag("py"), Tag("py"))};
  ASSERT_TRUE(registry_->InsertSandboxesBlocking(rows).ok());
  const absl::StatusOr<std::vector<SandboxRow>> list = registry_->ListSandboxesBlocking();
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 3u);
  for (int i = 0; i < 3; ++i) { EXPECT_EQ((*list)[static_cast<std::size_t>(i)].id, Id(i + 1)); }
}

TEST_F(RegistryTest, UpdateOfAnOldGenerationIsRefused) {
  AddRoot("py");
  SandboxRow row = FullRow();
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({row}).ok());
  row.generation = 1;
  row.state = SandboxState::kRunning;
  row.branch_count = 8;
  const absl::StatusOr<std::int64_t> first = registry_->UpdateSandboxBlocking(row);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(*first, 2);
  row.state = SandboxState::kFailed;
  const absl::Status second = registry_->UpdateSandboxBlocking(row).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(second), "SANDBOX_BUSY");
  const absl::StatusOr<SandboxRow> stored = registry_->GetSandboxBlocking(row.id);
  ASSERT_TRUE(stored.ok());
  EXPECT_EQ(stored->state, SandboxState::kRunning);
  EXPECT_EQ(stored->branch_count, 8);
}

TEST_F(RegistryTest, UpdateOfADeletedSandboxIsNotFound) {
  AddRoot("py");
  SandboxRow row = FullRow();
  row.generation = 1;
  EXPECT_EQ(ReasonOf(registry_->UpdateSandboxBlocking(row).status()), "SANDBOX_UNKNOWN");
}

TEST_F(RegistryTest, UpdatesOfSeveralSandboxesAreAllOrNone) {
  AddRoot("py");
  std::vector<SandboxRow> rows = {SandboxRow(Id(1), Tag("py"), Tag("py")), SandboxRow(Id(2), Tag("py"), Tag("py"))};
  ASSERT_TRUE(registry_->InsertSandboxesBlocking(rows).ok());
  rows[0].state = rows[1].state = SandboxState::kRunning;
  rows[0].generation = 1;
  rows[1].generation = 9;
  EXPECT_EQ(registry_->UpdateSandboxesBlocking(rows, std::nullopt).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(registry_->GetSandboxBlocking(Id(1))->state, SandboxState::kStarting);
  rows[1].generation = 1;
  const absl::StatusOr<std::vector<std::int64_t>> generations = registry_->UpdateSandboxesBlocking(rows, std::nullopt);
  ASSERT_TRUE(generations.ok()) << generations.status();
  EXPECT_EQ(*generations, (std::vector<std::int64_t>{2, 2}));
}

TEST_F(RegistryTest, OnlyOneOfManyTakesAState) {
  AddRoot("py");
  SandboxRow row = FullRow();
  row.state = SandboxState::kRunning;
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({row}).ok());
  std::atomic<int> won = 0;
  std::atomic<int> refused = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const SandboxState from[] = {SandboxState::kRunning};
      const absl::StatusOr<SandboxRow> taken = registry_->SetSandboxStateBlocking(row.id, from, SandboxState::kBranching);
      if (taken.ok()) { ++won; }
      if (ReasonOf(taken.status()) == "SANDBOX_NOT_RUNNING") { ++refused; }
    });
  }
  for (std::thread& thread : threads) { thread.join(); }
  EXPECT_EQ(won, 1);
  EXPECT_EQ(refused, 7);
  EXPECT_EQ(registry_->GetSandboxBlocking(row.id)->generation, 2);
}

TEST_F(RegistryTest, DeletingTwiceIsNoError) {
  AddRoot("py");
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({SandboxRow(Id(1), Tag("py"), Tag("py"))}).ok());
  EXPECT_EQ(*registry_->DeleteSandboxBlocking(Id(1)), true);
  EXPECT_EQ(*registry_->DeleteSandboxBlocking(Id(1)), false);
  EXPECT_EQ(ReasonOf(registry_->GetSandboxBlocking(Id(1)).status()), "SANDBOX_UNKNOWN");
}

// ---- Snapshots ----

TEST_F(RegistryTest, SnapshotSurvivesARestartWithEveryField) {
  AddRoot("root");
  SnapshotRow row(Tag("leaf"), Tag("root"));
  row.kind = SnapshotKind::kBranch;
  row.parent_tag = Tag("root");
  row.branched_from = Id(1);
  row.created_at_unix = 5;
  row.depth = 3;
  row.labels = {{"a", "b"}};
  row.request_id = "r-2";
  ASSERT_TRUE(registry_->InsertSnapshotBlocking(row).ok());
  row.pause_ms = 9;
  row.memory_bytes = 256 << 20;
  row.page_count = 11;
  row.physical_bytes = 12;
  row.memory_mib = 256;
  row.vcpus = 2;
  row.image = "python";
  row.captured = "memory, device state";
  row.warning = "w";
  ASSERT_TRUE(registry_->MarkSnapshotReadyBlocking(row, std::nullopt).ok());
  Open();
  const absl::StatusOr<SnapshotRow> read = registry_->GetSnapshotBlocking(Tag("leaf"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->status, SnapshotStatus::kReady);
  EXPECT_EQ(read->kind, SnapshotKind::kBranch);
  EXPECT_EQ(read->root_tag, Tag("root"));
  EXPECT_EQ(read->parent_tag, Tag("root"));
  EXPECT_EQ(read->branched_from, Id(1));
  EXPECT_EQ(read->created_at_unix, 5);
  EXPECT_EQ(read->depth, 3);
  EXPECT_EQ(read->labels, row.labels);
  EXPECT_EQ(read->request_id, "r-2");
  EXPECT_EQ(read->pause_ms, 9);
  EXPECT_EQ(read->memory_bytes, 256 << 20);
  EXPECT_EQ(read->page_count, 11);
  EXPECT_EQ(read->physical_bytes, 12);
  EXPECT_EQ(read->memory_mib, 256);
  EXPECT_EQ(read->vcpus, 2);
  EXPECT_EQ(read->image, "python");
  EXPECT_EQ(read->captured, "memory, device state");
  EXPECT_EQ(read->warning, "w");
}

TEST_F(RegistryTest, TagIsTakenWhateverTheStatus) {
  ASSERT_TRUE(registry_->InsertSnapshotBlocking(SnapshotRow(Tag("t"), Tag("t"))).ok());
  EXPECT_EQ(ReasonOf(registry_->InsertSnapshotBlocking(SnapshotRow(Tag("t"), Tag("t")))), "TAG_TAKEN");
  ASSERT_TRUE(registry_->MarkSnapshotFailedBlocking(Tag("t"), "the guest did not boot").ok());
  const absl::Status status = registry_->InsertSnapshotBlocking(SnapshotRow(Tag("t"), Tag("t")));
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReasonOf(status), "TAG_TAKEN");
}

TEST_F(RegistryTest, OnlyAWritingSnapshotBecomesReadyOrFailed) {
  AddRoot("t");
  EXPECT_EQ(ReasonOf(registry_->MarkSnapshotReadyBlocking(SnapshotRow(Tag("t"), Tag("t")), std::nullopt)), "SNAPSHOT_NOT_READY");
  EXPECT_EQ(ReasonOf(registry_->MarkSnapshotFailedBlocking(Tag("t"), "no")), "SNAPSHOT_NOT_READY");
  EXPECT_EQ(ReasonOf(registry_->MarkSnapshotFailedBlocking(Tag("none"), "no")), "SNAPSHOT_UNKNOWN");
}

TEST_F(RegistryTest, BranchNeedsItsRoot) {
  SnapshotRow row(Tag("leaf"), Tag("gone"));
  row.kind = SnapshotKind::kBranch;
  EXPECT_EQ(ReasonOf(registry_->InsertSnapshotBlocking(row)), "SNAPSHOT_UNKNOWN");
}

TEST_F(RegistryTest, SnapshotInUseIsNotDeletedAndItsUsersAreNamed) {
  AddRoot("root");
  AddBranch("b1", "root", "root");
  AddBranch("b2", "b1", "root");
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({SandboxRow(Id(5), Tag("b1"), Tag("root"))}).ok());

  const absl::Status root = registry_->DeleteSnapshotBlocking(Tag("root"), Registry::DependentsRule::kRefuse).status();
  EXPECT_EQ(root.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(root), "SNAPSHOT_HAS_DEPENDENTS");
  EXPECT_NE(root.message().find("b1, b2"), absl::string_view::npos) << root;
  EXPECT_NE(root.message().find(Id(5).str()), absl::string_view::npos) << root;

  const absl::Status middle = registry_->DeleteSnapshotBlocking(Tag("b1"), Registry::DependentsRule::kRefuse).status();
  EXPECT_EQ(ReasonOf(middle), "SNAPSHOT_HAS_DEPENDENTS");
  EXPECT_NE(middle.message().find("b2"), absl::string_view::npos) << middle;

  EXPECT_EQ(*registry_->DeleteSnapshotBlocking(Tag("b2"), Registry::DependentsRule::kRefuse), true);
  ASSERT_TRUE(registry_->DeleteSandboxBlocking(Id(5)).ok());
  EXPECT_EQ(*registry_->DeleteSnapshotBlocking(Tag("b1"), Registry::DependentsRule::kRefuse), true);
  EXPECT_EQ(*registry_->DeleteSnapshotBlocking(Tag("root"), Registry::DependentsRule::kRefuse), true);
  EXPECT_EQ(*registry_->DeleteSnapshotBlocking(Tag("root"), Registry::DependentsRule::kRefuse), false);
}

TEST_F(RegistryTest, WhatHasFailedHoldsNothing) {
  AddRoot("root");
  SandboxRow dead(Id(1), Tag("root"), Tag("root"));
  dead.state = SandboxState::kFailed;
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({dead}).ok());
  EXPECT_TRUE(registry_->DependentsBlocking(Tag("root"))->empty());
  EXPECT_EQ(*registry_->DeleteSnapshotBlocking(Tag("root"), Registry::DependentsRule::kRefuse), true);
}

TEST_F(RegistryTest, ForcedDeletionIgnoresDependents) {
  AddRoot("root");
  AddBranch("b1", "root", "root");
  EXPECT_EQ(*registry_->DeleteSnapshotBlocking(Tag("root"), Registry::DependentsRule::kIgnore), true);
  EXPECT_EQ(registry_->ListSnapshotsBlocking()->size(), 1u);
}

TEST_F(RegistryTest, LineageRunsFromTheRootToTheTag) {
  AddRoot("root");
  AddBranch("b1", "root", "root");
  AddBranch("b2", "b1", "root");
  AddBranch("a0", "b2", "root");
  EXPECT_EQ(*registry_->LineageBlocking(Tag("a0")), (std::vector<SnapshotTag>{Tag("root"), Tag("b1"), Tag("b2"), Tag("a0")}));
  EXPECT_EQ(*registry_->LineageBlocking(Tag("root")), (std::vector<SnapshotTag>{Tag("root")}));
  ASSERT_TRUE(registry_->DeleteSnapshotBlocking(Tag("b1"), Registry::DependentsRule::kIgnore).ok());
  EXPECT_EQ(*registry_->LineageBlocking(Tag("a0")), (std::vector<SnapshotTag>{Tag("b2"), Tag("a0")}));
  EXPECT_EQ(ReasonOf(registry_->LineageBlocking(Tag("none")).status()), "SNAPSHOT_UNKNOWN");
}

// ---- Idempotency ----

constexpr std::int64_t kNow = 1785000000;

IdempotencyKey Key(absl::string_view key, absl::string_view request) { return {std::string(key), "forkd.v1.SandboxService/CreateSandboxes", Sha256Of(request)}; }

TEST_F(RegistryTest, RepeatedCallGetsTheFirstResult) {
  ASSERT_TRUE(std::holds_alternative<IdempotentFresh>(*registry_->BeginIdempotentBlocking(Key("k", "req"), kNow)));
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"k", std::string("result\0with NUL", 15)}).ok());
  Open();
  const absl::StatusOr<IdempotentStart> again = registry_->BeginIdempotentBlocking(Key("k", "req"), kNow + 10);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_TRUE(std::holds_alternative<IdempotentReplay>(*again));
  EXPECT_EQ(std::get<IdempotentReplay>(*again).result, std::string("result\0with NUL", 15));
}

TEST_F(RegistryTest, EmptyResultIsAResult) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"k", ""}).ok());
  EXPECT_TRUE(std::holds_alternative<IdempotentReplay>(*registry_->BeginIdempotentBlocking(Key("k", "req"), kNow)));
}

TEST_F(RegistryTest, KeyWithAnotherRequestOrMethodIsRefused) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  const absl::Status other = registry_->BeginIdempotentBlocking(Key("k", "other"), kNow).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(other), "IDEMPOTENCY_KEY_REUSED");
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"k", "r"}).ok());
  IdempotencyKey method = Key("k", "req");
  method.method = "forkd.v1.SandboxService/BranchSandbox";
  EXPECT_EQ(ReasonOf(registry_->BeginIdempotentBlocking(method, kNow).status()), "IDEMPOTENCY_KEY_REUSED");
}

TEST_F(RegistryTest, KeyInProgressAsksForARetry) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  const absl::Status status = registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(status), "IDEMPOTENCY_KEY_IN_PROGRESS");
  EXPECT_TRUE(RetryAfterOf(status).has_value());
  // However long it takes.
  EXPECT_EQ(ReasonOf(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow + 2 * kIdempotencyLifetimeSecs).status()), "IDEMPOTENCY_KEY_IN_PROGRESS");
}

TEST_F(RegistryTest, AbandonedKeyIsFreeAgain) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  ASSERT_TRUE(registry_->AbandonIdempotentBlocking("k").ok());
  EXPECT_TRUE(std::holds_alternative<IdempotentFresh>(*registry_->BeginIdempotentBlocking(Key("k", "other"), kNow)));
}

TEST_F(RegistryTest, FinishedKeyIsNotAbandonedNorOverwritten) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"k", "first"}).ok());
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"k", "second"}).ok());
  ASSERT_TRUE(registry_->AbandonIdempotentBlocking("k").ok());
  const absl::StatusOr<IdempotentStart> again = registry_->BeginIdempotentBlocking(Key("k", "req"), kNow);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(std::get<IdempotentReplay>(*again).result, "first");
}

TEST_F(RegistryTest, SuccessorOfAKilledDaemonFreesWhatWasInProgress) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("running", "req"), kNow).ok());
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("done", "req"), kNow).ok());
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"done", "r"}).ok());
  Open();
  EXPECT_EQ(*registry_->AbandonAllIdempotentBlocking(), 1);
  EXPECT_TRUE(std::holds_alternative<IdempotentFresh>(*registry_->BeginIdempotentBlocking(Key("running", "req"), kNow)));
  EXPECT_TRUE(std::holds_alternative<IdempotentReplay>(*registry_->BeginIdempotentBlocking(Key("done", "req"), kNow)));
}

TEST_F(RegistryTest, KeyExpiresAfterADay) {
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"k", "r"}).ok());
  EXPECT_TRUE(std::holds_alternative<IdempotentReplay>(*registry_->BeginIdempotentBlocking(Key("k", "req"), kNow + kIdempotencyLifetimeSecs - 1)));
  EXPECT_TRUE(std::holds_alternative<IdempotentFresh>(*registry_->BeginIdempotentBlocking(Key("k", "new"), kNow + kIdempotencyLifetimeSecs)));
}

TEST_F(RegistryTest, SweepDropsOldResultsAlone) {
  for (const char* key : {"old", "young", "running"}) {
    ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key(key, "req"), key == absl::string_view("young") ? kNow : kNow - kIdempotencyLifetimeSecs).ok());
  }
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"old", "r"}).ok());
  ASSERT_TRUE(registry_->FinishIdempotentBlocking({"young", "r"}).ok());
  EXPECT_EQ(*registry_->SweepIdempotencyBlocking(kNow), 1);
  EXPECT_EQ(ReasonOf(registry_->BeginIdempotentBlocking(Key("running", "req"), kNow).status()), "IDEMPOTENCY_KEY_IN_PROGRESS");
}

TEST_F(RegistryTest, MalformedKeysAreRefused) {
  for (const std::string& key : {std::string(), std::string(65, 'k'), std::string("a\nb"), std::string("\xc3\xbc")}) {
    const absl::Status status = registry_->BeginIdempotentBlocking(Key(key, "req"), kNow).status();
    EXPECT_EQ(ReasonOf(status), "INVALID_FIELD") << key;
    EXPECT_NE(status.message().find("idempotency_key"), absl::string_view::npos);
  }
  EXPECT_TRUE(registry_->BeginIdempotentBlocking(Key(std::string(64, 'k'), "req"), kNow).ok());
}

TEST_F(RegistryTest, ResultBecomesDurableWithTheRowsItTellsOf) {
  AddRoot("py");
  SandboxRow row(Id(1), Tag("py"), Tag("py"));
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({row}).ok());
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  row.state = SandboxState::kRunning;
  row.generation = 7;  // lost a race: neither the row nor the result may change
  EXPECT_FALSE(registry_->UpdateSandboxesBlocking({row}, IdempotentResult{"k", "r"}).ok());
  EXPECT_EQ(ReasonOf(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).status()), "IDEMPOTENCY_KEY_IN_PROGRESS");
  row.generation = 1;
  ASSERT_TRUE(registry_->UpdateSandboxesBlocking({row}, IdempotentResult{"k", "r"}).ok());
  EXPECT_TRUE(std::holds_alternative<IdempotentReplay>(*registry_->BeginIdempotentBlocking(Key("k", "req"), kNow)));
}

TEST_F(RegistryTest, ReadySnapshotCarriesItsResult) {
  const SnapshotRow row(Tag("t"), Tag("t"));
  ASSERT_TRUE(registry_->InsertSnapshotBlocking(row).ok());
  ASSERT_TRUE(registry_->BeginIdempotentBlocking(Key("k", "req"), kNow).ok());
  ASSERT_TRUE(registry_->MarkSnapshotReadyBlocking(row, IdempotentResult{"k", "r"}).ok());
  EXPECT_TRUE(std::holds_alternative<IdempotentReplay>(*registry_->BeginIdempotentBlocking(Key("k", "req"), kNow)));
}

// ---- The file ----

TEST_F(RegistryTest, KnowsWhetherItIsNewAndTakesSnapshotsThatWereThereBefore) {
  EXPECT_TRUE(registry_->created());
  SnapshotRow root(Tag("root"), Tag("root"));
  root.status = SnapshotStatus::kReady;
  SnapshotRow leaf(Tag("leaf"), Tag("root"));
  leaf.status = SnapshotStatus::kReady;
  leaf.kind = SnapshotKind::kBranch;
  leaf.parent_tag = Tag("root");
  ASSERT_TRUE(registry_->InsertSnapshotBlocking(root).ok());
  ASSERT_TRUE(registry_->InsertSnapshotBlocking(leaf).ok());
  Open();
  EXPECT_FALSE(registry_->created());
  EXPECT_TRUE(registry_->InsertSandboxesBlocking({SandboxRow(Id(1), Tag("leaf"), Tag("root"))}).ok());
}

TEST_F(RegistryTest, FileOfANewerForkdIsRefused) {
  Sql("PRAGMA user_version=999");
  registry_.reset();
  const absl::Status status = Registry::OpenBlocking(dir_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "REGISTRY");
  EXPECT_EQ(status.message().substr(0, 10), "registry \"");  // and the path, cut where it is long
  EXPECT_NE(status.message().find("999"), absl::string_view::npos);
}

TEST_F(RegistryTest, FileThatIsNoDatabaseIsRefused) {
  registry_.reset();
  std::filesystem::remove(dir_ + "/registry.db-wal");
  ASSERT_EQ(::truncate((dir_ + "/registry.db").c_str(), 0), 0);
  FILE* const file = ::fopen((dir_ + "/registry.db").c_str(), "w");
  ASSERT_NE(file, nullptr);
  ::fputs(std::string(4096, 'x').c_str(), file);
  ::fclose(file);
  const absl::Status status = Registry::OpenBlocking(dir_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "REGISTRY");
}

TEST_F(RegistryTest, UnreadableRowIsAnErrorThatNamesTheColumn) {
  AddRoot("py");
  ASSERT_TRUE(registry_->InsertSandboxesBlocking({SandboxRow(Id(1), Tag("py"), Tag("py"))}).ok());
  Sql("UPDATE sandboxes SET state='DANCING'");
  const absl::Status status = registry_->ListSandboxesBlocking().status();
  EXPECT_EQ(ReasonOf(status), "REGISTRY");
  EXPECT_NE(status.message().find("sandboxes.state"), absl::string_view::npos);
}

TEST_F(RegistryTest, FileIsForItsOwnerAlone) {
  struct stat status = {};
  ASSERT_EQ(::stat((dir_ + "/registry.db").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

constexpr const char* kTwoVersions[] = {"CREATE TABLE t (a TEXT NOT NULL) STRICT", "ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 7"};

TEST_F(RegistryTest, MigrationKeepsTheRowsOfAnOlderFile) {
  const std::string path = dir_ + "/migrate.db";
  {
    const absl::StatusOr<std::unique_ptr<Database>> old = Database::OpenBlocking(path, absl::MakeConstSpan(kTwoVersions, 1));
    ASSERT_TRUE(old.ok()) << old.status();
    ASSERT_TRUE((*old)->Execute("INSERT INTO t VALUES ('kept')").ok());
  }
  const absl::StatusOr<std::unique_ptr<Database>> now = Database::OpenBlocking(path, kTwoVersions);
  ASSERT_TRUE(now.ok()) << now.status();
  absl::StatusOr<Statement> select = (*now)->Prepare("SELECT a, b FROM t");
  ASSERT_TRUE(select.ok());
  ASSERT_EQ(*select->Step(), true);
  EXPECT_EQ(select->Text(0), "kept");
  EXPECT_EQ(select->Int(1), 7);
}

TEST_F(RegistryTest, FailedMigrationLeavesTheOldFileAsItWas) {
  const std::string path = dir_ + "/migrate.db";
  { ASSERT_TRUE(Database::OpenBlocking(path, absl::MakeConstSpan(kTwoVersions, 1)).ok()); }
  constexpr const char* kBroken[] = {kTwoVersions[0], "ALTER TABLE t ADD COLUMN b TEXT; SELECT nonsense FROM nowhere"};
  EXPECT_FALSE(Database::OpenBlocking(path, kBroken).ok());
  const absl::StatusOr<std::unique_ptr<Database>> now = Database::OpenBlocking(path, kTwoVersions);
  EXPECT_TRUE(now.ok()) << now.status();
}

}  // namespace
}  // namespace forkd::engine
