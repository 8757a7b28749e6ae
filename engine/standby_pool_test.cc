#include "engine/standby_pool.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

namespace forkd::engine {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

SnapshotTag Tag(const char* text) { return *SnapshotTag::Parse(text); }

// Children without a VM: the pool looks at neither VM nor agent but to see whether they have ended.
class StandbyPoolTest : public testing::Test {
 protected:
  StandbyPoolTest() : admission_(1000, [] { return int64_t{100000}; }), discarded_event_(runtime_.executor()), made_event_(runtime_.executor()) {
    runtime_.Start();
  }
  ~StandbyPoolTest() override {
    if (pool_ != nullptr) { runtime_.RunBlocking(pool_->ShutDown()); }
    runtime_.Stop();
  }

  void Start(StandbyOptions options) {
    pool_ = std::make_unique<StandbyPool>(&runtime_, options, std::bind_front(&StandbyPoolTest::Make, this),
                                          std::bind_front(&StandbyPoolTest::Discard, this));
    runtime_.Spawn(pool_->RefillLoop());
  }

  Task<absl::StatusOr<std::unique_ptr<StandbyChild>>> Make(SnapshotTag tag) {
    ++made_;
    made_event_.Set();
    if (fail_) { co_return absl::UnavailableError("no"); }
    auto child = std::make_unique<StandbyChild>();
    child->origin = origin_;
    absl::StatusOr<MemoryReservation> reservation = admission_.Reserve(10, "a child");
    if (!reservation.ok()) { co_return reservation.status(); }
    child->reservation = *std::move(reservation);
    last_ = child.get();
    co_return child;
  }
  Task<void> Discard(std::shared_ptr<StandbyChild> child) {
    ++discarded_;
    discarded_event_.Set();
    co_return;
  }

  // On the I/O thread, as the engine does.
  template <typename Fn>
  void OnIo(Fn fn) {
    runtime_.RunBlocking(Call(std::function<void()>(fn)));
  }
  static Task<void> Call(std::function<void()> fn) {
    fn();
    co_return;
  }
  static Task<void> UntilReady(StandbyPool* pool, SnapshotTag tag, int ready, bool* reached) {
    const Deadline deadline = Deadline::In(seconds(20));
    while (pool->LevelsOf(tag).ready != ready && !deadline.Expired()) { co_await SleepUntil(Deadline::In(milliseconds(1))); }
    *reached = pool->LevelsOf(tag).ready == ready;
  }
  bool Reaches(const SnapshotTag& tag, int ready) {
    bool reached = false;
    runtime_.RunBlocking(UntilReady(pool_.get(), tag, ready, &reached));
    return reached;
  }
  int Claim(const SnapshotTag& tag, int n) {
    int got = 0;
    OnIo([&] { got = static_cast<int>(pool_->Claim(tag, n, origin_).size()); });
    return got;
  }

  Runtime runtime_;
  Admission admission_;
  std::shared_ptr<const ResidentSnapshot> origin_ = std::make_shared<ResidentSnapshot>();
  AsyncEvent discarded_event_;
  AsyncEvent made_event_;
  std::unique_ptr<StandbyPool> pool_;
  int made_ = 0;
  int discarded_ = 0;
  StandbyChild* last_ = nullptr;
  bool fail_ = false;
};

TEST_F(StandbyPoolTest, KeepsWhatRecentForksAskedForAtOnce) {
  Start({});
  EXPECT_EQ(Claim(Tag("a"), 3), 0) << "nothing is kept for a snapshot that nobody forks";
  EXPECT_TRUE(Reaches(Tag("a"), 3));
  EXPECT_EQ(Claim(Tag("a"), 2), 2);
  EXPECT_TRUE(Reaches(Tag("a"), 3)) << "the largest recent request counts, not the last";
  OnIo([&] {
    EXPECT_EQ(pool_->LevelsOf(Tag("a")).hits, 2);
    EXPECT_EQ(pool_->LevelsOf(Tag("a")).misses, 3);
  });
}

TEST_F(StandbyPoolTest, DemandAloneHasABound) {
  StandbyOptions options;
  options.max_automatic = 2;
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 100), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 2));
  OnIo([&] { EXPECT_EQ(pool_->LevelsOf(Tag("a")).target, 2); });
}

TEST_F(StandbyPoolTest, DemandIsForgottenAfterItsWindow) {
  StandbyOptions options;
  options.demand_window = seconds(0);
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 3), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 0));
  OnIo([&] { EXPECT_EQ(pool_->LevelsOf(Tag("a")).target, 0); });
}

TEST_F(StandbyPoolTest, ChildrenOfAnEarlierSnapshotWithThatTagAreNotHandedOut) {
  StandbyOptions options;
  options.fixed_target = 2;
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 2));
  OnIo([&] { origin_ = std::make_shared<ResidentSnapshot>(); });
  EXPECT_EQ(Claim(Tag("a"), 2), 0);
  OnIo([&] { EXPECT_EQ(discarded_, 2); });
}

TEST_F(StandbyPoolTest, AChildThatDiedWhileWaitingIsNotHandedOut) {
  StandbyOptions options;
  options.fixed_target = 1;
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 1));
  int got = -1;
  OnIo([&] {
    last_->dead = true;
    got = static_cast<int>(pool_->Claim(Tag("a"), 1, origin_).size());
  });
  EXPECT_EQ(got, 0);
  OnIo([&] { EXPECT_EQ(discarded_, 1); });
}

TEST_F(StandbyPoolTest, EvictionGivesTheMemoryBackAtOnce) {
  StandbyOptions options;
  options.fixed_target = 2;
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 2));
  OnIo([&] {
    EXPECT_EQ(admission_.reserved_mib(), 20);
    EXPECT_TRUE(pool_->EvictOne());
    EXPECT_EQ(admission_.reserved_mib(), 10);
    EXPECT_TRUE(pool_->EvictOne());
    EXPECT_FALSE(pool_->EvictOne());
  });
}

TEST_F(StandbyPoolTest, MakesNothingWhileAForkIsUnderWay) {
  StandbyOptions options;
  options.fixed_target = 1;
  Start(options);
  auto quiet = std::make_unique<std::optional<StandbyPool::Quiet>>();
  OnIo([&] { quiet->emplace(pool_.get()); });
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  OnIo([&] { EXPECT_EQ(made_, 0); });
  OnIo([&] { quiet->reset(); });
  EXPECT_TRUE(Reaches(Tag("a"), 1));
}

TEST_F(StandbyPoolTest, ForgettingASnapshotEndsItsChildren) {
  StandbyOptions options;
  options.fixed_target = 2;
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 2));
  OnIo([&] { pool_->Forget(Tag("a")); });
  OnIo([&] {
    EXPECT_EQ(admission_.reserved_mib(), 0);
    EXPECT_EQ(discarded_, 2);
  });
}

TEST_F(StandbyPoolTest, ASnapshotWhoseChildrenCannotBeMadeIsNotTriedWithoutEnd) {
  fail_ = true;
  StandbyOptions options;
  options.fixed_target = 5;
  Start(options);
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  EXPECT_EQ(Claim(Tag("a"), 1), 0);
  EXPECT_TRUE(Reaches(Tag("a"), 0));
  OnIo([&] { EXPECT_LE(made_, 1); });
}

}  // namespace
}  // namespace forkd::engine
