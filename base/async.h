// The one façade over Boost.Asio's coroutines that headers may include.
//
// A Task is a lazily started coroutine. Everything the daemon does with sockets, timers and processes runs on one I/O thread (Runtime), so
// code between two `co_await`s is never interrupted; after each `co_await` anything may have changed. Take parameters of coroutines by value.
#ifndef FORKD_BASE_ASYNC_H_
#define FORKD_BASE_ASYNC_H_

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

namespace forkd {

using Executor = boost::asio::any_io_executor;

template <typename T = void>
using Task = boost::asio::awaitable<T, Executor>;

}  // namespace forkd

#endif  // FORKD_BASE_ASYNC_H_
