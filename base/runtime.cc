#include "base/runtime.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <utility>

namespace forkd {
namespace {

// No exception leaves a coroutine of ours on purpose: one that does is a bug whose place the core file or the log shows.
void AbortOn(std::exception_ptr error) {
  if (!error) { return; }
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "forkd: an exception left a coroutine: %s\n", e.what());
  } catch (...) {
    std::fprintf(stderr, "forkd: an unknown exception left a coroutine\n");
  }
  std::abort();
}

Task<void> Signalling(Task<void> task, std::promise<void>* done) {
  co_await std::move(task);
  done->set_value();
}

}  // namespace

struct Runtime::Impl {
  // Concurrency hint 1: one thread runs it; other threads only post.
  boost::asio::io_context io{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{io.get_executor()};
  std::thread thread;
};

Runtime::Runtime() : impl_(std::make_unique<Impl>()) {}

Runtime::~Runtime() { Stop(); }

void Runtime::Start() {
  impl_->thread = std::thread([impl = impl_.get()] { impl->io.run(); });
}

void Runtime::Stop() {
  impl_->work.reset();
  impl_->io.stop();
  if (impl_->thread.joinable()) { impl_->thread.join(); }
}

Executor Runtime::executor() const { return impl_->io.get_executor(); }

void Runtime::Spawn(Task<void> task) { SpawnOn(executor(), std::move(task)); }

void Runtime::Post(absl::AnyInvocable<void()> fn) {
  // io_context handlers are moved, never copied, but post() asks for a copyable type in places: a shared_ptr satisfies it.
  auto shared = std::make_shared<absl::AnyInvocable<void()>>(std::move(fn));
  boost::asio::post(impl_->io, [shared] { (*shared)(); });
}

void Runtime::RunBlocking(Task<void> task) {
  std::promise<void> done;
  std::future<void> finished = done.get_future();
  Spawn(Signalling(std::move(task), &done));
  finished.get();
}

bool Runtime::OnIoThread() const { return impl_->thread.get_id() == std::this_thread::get_id(); }

void SpawnOn(const Executor& executor, Task<void> task) { boost::asio::co_spawn(executor, std::move(task), AbortOn); }

}  // namespace forkd
