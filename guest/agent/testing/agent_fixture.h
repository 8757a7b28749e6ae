// A test that drives the agent's real binary by the real client.
#ifndef FORKD_GUEST_AGENT_TESTING_AGENT_FIXTURE_H_
#define FORKD_GUEST_AGENT_TESTING_AGENT_FIXTURE_H_

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/runtime.h"
#include "guest/agent/testing/agent_process.h"
#include "guest/client/agent_client.h"

namespace forkd::guest {
using std::chrono::milliseconds;
using std::chrono::seconds;

inline Deadline Soon() { return Deadline::In(seconds(30)); }

template <typename T>
Task<void> Store(Task<T> task, std::optional<T>* result) {
  result->emplace(co_await std::move(task));
}

class AgentTest : public testing::Test {
 protected:
  AgentTest() { runtime_.Start(); }
  ~AgentTest() override {
    runtime_.RunBlocking(Drop(&client_));
  }
  static Task<void> Drop(std::shared_ptr<AgentClient>* client) {
    client->reset();
    co_return;
  }

  template <typename T>
  T Run(Task<T> task) {
    std::optional<T> result;
    runtime_.RunBlocking(Store(std::move(task), &result));
    return *std::move(result);
  }

  void StartAgent(const std::string& runner = "guest/agent/runner.py") {
    agent_ = std::make_unique<AgentProcess>(runner);
    Connect();
  }
  void Connect() {
    absl::StatusOr<std::shared_ptr<AgentClient>> client = Run(AgentClient::Connect(agent_->Attach(), agent_->token(), Soon()));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  static agentpb::ExecStart Program(const std::vector<std::string>& argv) {
    agentpb::ExecStart start;
    for (const std::string& argument : argv) { start.add_argv(argument); }
    return start;
  }
  ExecResult Exec(agentpb::ExecStart start, std::string stdin_data = {}) {
    absl::StatusOr<ExecResult> result = Run(client_->Exec(std::move(start), 1 << 20, Soon(), std::move(stdin_data)));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : ExecResult();
  }
  ExecResult Exec(const std::vector<std::string>& argv) { return Exec(Program(argv)); }
  ExecResult Shell(const std::string& script) { return Exec({"sh", "-c", script}); }
  agentpb::EvalResponse Eval(const std::string& code, milliseconds timeout = seconds(20)) {
    agentpb::EvalRequest request;
    request.set_code(code);
    request.set_timeout_ns(static_cast<uint64_t>(std::chrono::nanoseconds(timeout).count()));
    absl::StatusOr<agentpb::EvalResponse> response = Run(client_->Eval(request, Soon()));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : agentpb::EvalResponse();
  }
  // Runs a coroutine's steps; for tests that need more than one call at a time.
  void Go(Task<void> task) { runtime_.RunBlocking(std::move(task)); }
  std::shared_ptr<ExecStream> Start(agentpb::ExecStart start) {
    absl::StatusOr<std::shared_ptr<ExecStream>> stream = Run(client_->StartExec(std::move(start), Soon()));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return stream.ok() ? *std::move(stream) : nullptr;
  }
  // The next event that is not kStarted.
  ExecEvent NextOf(const std::shared_ptr<ExecStream>& stream) {
    while (true) {
      absl::StatusOr<ExecEvent> event = Run(stream->Next(Soon()));
      EXPECT_TRUE(event.ok()) << event.status();
      if (!event.ok()) { return ExecEvent(); }
      if (event->kind != ExecEvent::Kind::kStarted) { return *std::move(event); }
    }
  }
  // Output until it contains `text`.
  std::string ReadUntil(const std::shared_ptr<ExecStream>& stream, const std::string& text) {
    std::string all;
    while (all.find(text) == std::string::npos) {
      const ExecEvent event = NextOf(stream);
      if (event.kind == ExecEvent::Kind::kEnd) {
        ADD_FAILURE() << "the program ended; it wrote " << all;
        break;
      }
      all += event.data;
    }
    return all;
  }
  // Drops a stream on the I/O thread, where it must die.
  void Release(std::shared_ptr<ExecStream>* stream) { runtime_.RunBlocking(Reset(stream)); }
  static Task<void> Reset(std::shared_ptr<ExecStream>* stream) {
    stream->reset();
    co_return;
  }
  // Looks again and again until it is true; false after ten seconds.
  static bool Eventually(const std::function<bool()>& condition) {
    const Deadline deadline = Deadline::In(seconds(10));
    while (!deadline.Expired()) {
      if (condition()) { return true; }
      std::this_thread::sleep_for(milliseconds(5));
    }
    return false;
  }
  agentpb::PingResponse Ping() {
    absl::StatusOr<agentpb::PingResponse> response = Run(client_->Ping(Soon()));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : agentpb::PingResponse();
  }

  Runtime runtime_;
  std::unique_ptr<AgentProcess> agent_;
  std::shared_ptr<AgentClient> client_;
};

}  // namespace forkd::guest

#endif  // FORKD_GUEST_AGENT_TESTING_AGENT_FIXTURE_H_
