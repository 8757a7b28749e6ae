#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "base/async_event.h"
#include "base/async_mutex.h"
#include "base/blocking_pool.h"
#include "base/runtime.h"
#include "base/task_group.h"

namespace forkd {
namespace {

using std::chrono::milliseconds;

Task<void> RunOnPool(BlockingPool* pool, Runtime* runtime, std::thread::id* worker, bool* back_home) {
  auto work = [] { return std::this_thread::get_id(); };
  *worker = co_await pool->Run(std::move(work));
  *back_home = runtime->OnIoThread();
}

TEST(BlockingPoolTest, WorkRunsElsewhereAndTheCallerResumesOnTheIoThread) {
  Runtime runtime;
  runtime.Start();
  BlockingPool pool(1);
  std::thread::id worker;
  bool back_home = false;
  runtime.RunBlocking(RunOnPool(&pool, &runtime, &worker, &back_home));
  EXPECT_NE(worker, std::thread::id());
  EXPECT_NE(worker, std::this_thread::get_id());
  EXPECT_TRUE(back_home);
}

Task<void> WaitFor(AsyncEvent* event, Deadline deadline, bool* was_set) { *was_set = co_await event->Wait(deadline); }

TEST(AsyncEventTest, WaitEndsAtTheDeadlineWhenNobodySetsIt) {
  Runtime runtime;
  runtime.Start();
  AsyncEvent event(runtime.executor());
  bool was_set = true;
  runtime.RunBlocking(WaitFor(&event, Deadline::In(milliseconds(5)), &was_set));
  EXPECT_FALSE(was_set);
}

Task<void> SetAndWaitForBoth(AsyncEvent* event, AsyncEvent* both, int* woken) {
  event->Set();
  EXPECT_TRUE(co_await both->Wait(Deadline::In(std::chrono::seconds(10))));
  EXPECT_EQ(*woken, 2);
}

Task<void> CountWake(AsyncEvent* event, AsyncEvent* both, int* woken) {
  EXPECT_TRUE(co_await event->Wait(Deadline::Never()));
  if (++*woken == 2) { both->Set(); }
}

TEST(AsyncEventTest, SetWakesEveryWaiter) {
  Runtime runtime;
  runtime.Start();
  AsyncEvent event(runtime.executor());
  AsyncEvent both(runtime.executor());
  int woken = 0;
  runtime.Spawn(CountWake(&event, &both, &woken));
  runtime.Spawn(CountWake(&event, &both, &woken));
  runtime.RunBlocking(SetAndWaitForBoth(&event, &both, &woken));
}

Task<void> HoldAndLog(AsyncMutex* mutex, std::vector<int>* log, int number) {
  std::optional<AsyncMutex::Guard> guard = co_await mutex->Acquire(Deadline::In(std::chrono::seconds(10)));
  EXPECT_TRUE(guard.has_value());
  log->push_back(number);
  co_await SleepUntil(Deadline::In(milliseconds(1)));
  log->push_back(number);
}

Task<void> HoldFromThree(AsyncMutex* mutex, std::vector<int>* log) {
  auto make = [mutex, log](std::size_t i) { return HoldAndLog(mutex, log, static_cast<int>(i)); };
  co_await RunWindowed(3, 3, make);
}

TEST(AsyncMutexTest, HoldersDoNotInterleaveAndComeInOrder) {
  Runtime runtime;
  runtime.Start();
  AsyncMutex mutex(runtime.executor());
  std::vector<int> log;
  runtime.RunBlocking(HoldFromThree(&mutex, &log));
  EXPECT_EQ(log, (std::vector<int>{0, 0, 1, 1, 2, 2}));
  EXPECT_FALSE(mutex.IsHeld());
}

Task<void> GiveUp(AsyncMutex* mutex) {
  std::optional<AsyncMutex::Guard> held = co_await mutex->Acquire(Deadline::Never());
  std::optional<AsyncMutex::Guard> late = co_await mutex->Acquire(Deadline::In(milliseconds(2)));
  EXPECT_FALSE(late.has_value());
  held.reset();
  EXPECT_FALSE(mutex->IsHeld());
}

TEST(AsyncMutexTest, AWaiterThatGaveUpDoesNotInheritTheMutex) {
  Runtime runtime;
  runtime.Start();
  AsyncMutex mutex(runtime.executor());
  runtime.RunBlocking(GiveUp(&mutex));
}

Task<void> CountConcurrency(int* now, int* most) {
  *most = std::max(*most, ++*now);
  co_await SleepUntil(Deadline::In(milliseconds(1)));
  --*now;
}

Task<void> RunTen(int* now, int* most) {
  auto make = [now, most](std::size_t) { return CountConcurrency(now, most); };
  co_await RunWindowed(10, 3, make);
  co_await RunWindowed(0, 3, make);
}

TEST(RunWindowedTest, NeverRunsMoreThanTheWindow) {
  Runtime runtime;
  runtime.Start();
  int now = 0;
  int most = 0;
  runtime.RunBlocking(RunTen(&now, &most));
  EXPECT_EQ(most, 3);
  EXPECT_EQ(now, 0);
}

TEST(DeadlineTest, ADurationThatWouldOverflowMeansNever) {
  EXPECT_TRUE(Deadline::In(Deadline::Clock::duration::max()).IsNever());
  EXPECT_FALSE(Deadline::Never().Within(milliseconds(1)).IsNever());
}

}  // namespace
}  // namespace forkd
