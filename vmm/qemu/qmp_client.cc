#include "vmm/qemu/qmp_client.h"

#include <sys/random.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/async_event.h"
#include "base/error.h"
#include "base/runtime.h"
#include "base/status_macros.h"

namespace forkd::vmm {
namespace {

using nlohmann::json;

constexpr auto kNoThrow = boost::asio::as_tuple(boost::asio::use_awaitable);
constexpr absl::string_view kIdPrefix = "forkd-";

// Differs from connection to connection: an answer to a command of an earlier daemon may still arrive on ours.
std::string NewIdPrefix() {
  uint64_t nonce = 0;
  if (::getrandom(&nonce, sizeof(nonce), 0) != sizeof(nonce)) { nonce = static_cast<uint64_t>(Deadline::Clock::now().time_since_epoch().count()); }
  return absl::StrCat(kIdPrefix, absl::Hex(nonce), "-");
}

absl::Status SocketClosed() { return Error(absl::StatusCode::kUnavailable, Reason::kVmmFailed, "QEMU closed its control socket"); }

// Commands are a few hundred bytes and the socket's buffer takes hundreds of KiB: one that is full belongs to a QEMU that does not read.
absl::Status SendNow(int socket, const std::string& line, int fd) {
  iovec bytes{.iov_base = const_cast<char*>(line.data()), .iov_len = line.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  }
  const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent == static_cast<ssize_t>(line.size())) { return absl::OkStatus(); }
  if (sent < 0 && errno != EAGAIN) {
    if (errno == EPIPE || errno == ECONNRESET) { return SocketClosed(); }
    return ErrnoError(errno, "write to QEMU's control socket");
  }
  return Error(absl::StatusCode::kUnavailable, Reason::kVmmFailed, "QEMU does not read its control socket");
}

}  // namespace

struct QmpClient::Pending {
  explicit Pending(Executor executor) : answered(std::move(executor)) {}
  AsyncEvent answered;
  std::optional<absl::StatusOr<json>> result;
};

// Shared by the client and its reading coroutine, which may outlive it by a turn of the loop.
struct QmpClient::State {
  State(Executor e, UniqueFd socket, Handlers h)
      : executor(e), stream(e, socket.release()), handlers(std::move(h)), id_prefix(NewIdPrefix()), greeted(e) {}

  // Drops the connection and tells everyone who waits.
  void Break(absl::Status why) {
    if (!broken.ok()) { return; }
    broken = std::move(why);
    boost::system::error_code ignored;
    stream.close(ignored);
    greeted.Set();
    for (auto& [id, entry] : pending) {
      entry->result = broken;
      entry->answered.Set();
    }
    pending.clear();
    if (handlers.on_broken) { handlers.on_broken(broken); }
  }

  absl::Status Take(QmpMessage message) {
    if (std::holds_alternative<QmpGreeting>(message)) {
      if (greeted.IsSet()) { return Protocol("a second greeting"); }
      greeted.Set();
      return absl::OkStatus();
    }
    if (!greeted.IsSet()) { return Protocol("no greeting came first"); }
    if (const QmpEvent* event = std::get_if<QmpEvent>(&message)) {
      if (handlers.on_event) { handlers.on_event(*event); }
      return absl::OkStatus();
    }
    const QmpReturn* success = std::get_if<QmpReturn>(&message);
    const QmpFailure* failure = std::get_if<QmpFailure>(&message);
    const std::string& id = success != nullptr ? success->id : failure->id;
    const auto entry = pending.find(id);
    if (entry == pending.end()) {
      if (absl::StartsWith(id, kIdPrefix) && !absl::StartsWith(id, id_prefix)) { return absl::OkStatus(); }
      return Protocol(absl::StrCat("a reply to no command of ours, id ", Quoted(id)));
    }
    if (success != nullptr) {
      entry->second->result = success->value;
    } else {
      entry->second->result = Error(absl::StatusCode::kInternal, Reason::kVmmFailed, absl::StrCat("QEMU refuses: ", failure->description))
                                  .Meta("qmp_class", failure->error_class);
    }
    entry->second->answered.Set();
    pending.erase(entry);
    return absl::OkStatus();
  }

  static absl::Status Protocol(absl::string_view what) {
    return Error(absl::StatusCode::kInternal, Reason::kVmmProtocol, absl::StrCat("QEMU's control socket: ", what));
  }

  Executor executor;
  boost::asio::posix::stream_descriptor stream;
  Handlers handlers;
  std::string id_prefix;
  uint64_t next_id = 1;
  absl::Status broken;
  AsyncEvent greeted;
  std::map<std::string, std::shared_ptr<Pending>> pending;
};

QmpClient::QmpClient(std::shared_ptr<State> state) : state_(std::move(state)) {}

QmpClient::~QmpClient() {
  state_->handlers = {};
  state_->Break(Error(absl::StatusCode::kUnavailable, Reason::kVmmFailed, "the control socket was closed"));
}

Task<void> QmpClient::Read(std::shared_ptr<State> state) {
  QmpLines lines;
  char buffer[8192];
  while (state->broken.ok()) {
    const auto [error, count] = co_await state->stream.async_read_some(boost::asio::buffer(buffer), kNoThrow);
    if (error) {
      state->Break(SocketClosed());
      co_return;
    }
    absl::Status taken = lines.Append(absl::string_view(buffer, count));
    while (taken.ok() && state->broken.ok()) {
      const std::optional<std::string> line = lines.Next();
      if (!line.has_value()) { break; }
      absl::StatusOr<QmpMessage> message = ParseQmpMessage(*line);
      taken = message.ok() ? state->Take(*std::move(message)) : message.status();
    }
    if (!taken.ok()) { state->Break(std::move(taken)); }
  }
}

Task<absl::StatusOr<std::unique_ptr<QmpClient>>> QmpClient::Open(UniqueFd socket, Handlers handlers, Deadline deadline) {
  const Executor executor = co_await boost::asio::this_coro::executor;
  auto state = std::make_shared<State>(executor, std::move(socket), std::move(handlers));
  std::unique_ptr<QmpClient> client(new QmpClient(state));
  SpawnOn(executor, Read(state));
  const bool greeted = co_await state->greeted.Wait(deadline);
  if (!greeted) {
    co_return Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, "QEMU did not greet on its control socket in time");
  }
  if (!state->broken.ok()) { co_return state->broken; }
  absl::StatusOr<json> negotiated = co_await ExecuteOn(state, "qmp_capabilities", json::object(), deadline, -1);
  if (!negotiated.ok()) { co_return negotiated.status(); }
  co_return client;
}

Task<absl::StatusOr<json>> QmpClient::Execute(std::string command, json arguments, Deadline deadline, int fd) {
  return ExecuteOn(state_, std::move(command), std::move(arguments), deadline, fd);
}

Task<void> QmpClient::BreakUnlessAnswered(std::shared_ptr<State> state, std::shared_ptr<Pending> pending, absl::Status late) {
  const bool answered = co_await pending->answered.Wait(Deadline::In(state->handlers.patience));
  if (!answered) { state->Break(late); }
}

Task<absl::StatusOr<json>> QmpClient::ExecuteOn(std::shared_ptr<State> state, std::string command, json arguments, Deadline deadline, int fd) {
  if (!state->broken.ok()) { co_return state->broken; }
  const std::string id = absl::StrCat(state->id_prefix, state->next_id++);
  json request = json::object({{"execute", command}, {"id", id}});
  if (!arguments.empty()) { request["arguments"] = std::move(arguments); }
  auto pending = std::make_shared<Pending>(state->executor);
  state->pending.emplace(id, pending);
  const std::string line = request.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace) + "\n";
  absl::Status sent = SendNow(state->stream.native_handle(), line, fd);
  if (!sent.ok()) {
    state->Break(sent);
    co_return sent;
  }
  const bool answered = co_await pending->answered.Wait(deadline);
  if (!answered) {
    absl::Status late = Error(absl::StatusCode::kDeadlineExceeded, Reason::kDeadline, absl::StrCat("QEMU did not answer ", command, " in time"));
    SpawnOn(state->executor, BreakUnlessAnswered(state, pending, late));
    co_return late;
  }
  absl::StatusOr<json> result = *std::move(pending->result);
  if (!result.ok()) { co_return Annotate(result.status(), command); }
  co_return result;
}

}  // namespace forkd::vmm
