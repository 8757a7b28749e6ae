#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/async_event.h"
#include "base/blocking_pool.h"
#include "base/runtime.h"

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

TEST(DeadlineTest, ADurationThatWouldOverflowMeansNever) {
  EXPECT_TRUE(Deadline::In(Deadline::Clock::duration::max()).IsNever());
  EXPECT_FALSE(Deadline::Never().Within(milliseconds(1)).IsNever());
}

}  // namespace
}  // namespace forkd
