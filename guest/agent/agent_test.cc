// The agent's real binary, driven by the real client.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/runtime.h"
#include "guest/agent/testing/agent_process.h"
#include "guest/client/agent_client.h"

namespace forkd::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline Soon() { return Deadline::In(seconds(30)); }

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
  agentpb::PingResponse Ping() {
    absl::StatusOr<agentpb::PingResponse> response = Run(client_->Ping(Soon()));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : agentpb::PingResponse();
  }

  Runtime runtime_;
  std::unique_ptr<AgentProcess> agent_;
  std::shared_ptr<AgentClient> client_;
};

TEST_F(AgentTest, PingSaysWhoAnswers) {
  StartAgent();
  const agentpb::PingResponse ping = Ping();
  EXPECT_EQ(ping.protocol(), 1u);
  EXPECT_GT(ping.uptime_ns(), 0u);
  EXPECT_EQ(ping.boot_id().size(), 36u);
  EXPECT_EQ(ping.runner(), agentpb::RUNNER_STATE_STOPPED);
  EXPECT_EQ(ping.running_execs(), 0u);
}

TEST_F(AgentTest, ExecReturnsExitCodesAndBothOutputs) {
  StartAgent();
  EXPECT_EQ(Exec({"true"}).end.exit_code(), 0);
  EXPECT_EQ(Exec({"true"}).end.outcome_case(), agentpb::ExecEnd::kExitCode);
  EXPECT_EQ(Exec({"false"}).end.exit_code(), 1);
  const ExecResult result = Shell("echo out; echo err >&2; exit 7");
  EXPECT_EQ(result.stdout_data, "out\n");
  EXPECT_EQ(result.stderr_data, "err\n");
  EXPECT_EQ(result.end.exit_code(), 7);
  EXPECT_FALSE(result.stdout_truncated);
  EXPECT_FALSE(result.end.output_cut());
}

TEST_F(AgentTest, AMissingProgramIsAnExecError) {
  StartAgent();
  for (const char* name : {"no-such-program", "/no/such/program"}) {
    const ExecResult result = Exec({name});
    ASSERT_EQ(result.end.outcome_case(), agentpb::ExecEnd::kExecError) << name;
    EXPECT_EQ(result.end.exec_error().reason(), "NOT_FOUND");
    EXPECT_NE(result.end.exec_error().message().find(name), std::string::npos);
  }
  EXPECT_EQ(Exec({"/etc/passwd"}).end.exec_error().reason(), "NOT_EXECUTABLE");
  EXPECT_EQ(Ping().running_execs(), 0u);
}

TEST_F(AgentTest, EvalKeepsStateAndReturnsTheLastExpression) {
  StartAgent();
  EXPECT_EQ(Eval("x = 20\nx + 1").value(), "21");
  EXPECT_EQ(Eval("x * 2").value(), "40");
  EXPECT_FALSE(Eval("y = 1").has_value());
  EXPECT_FALSE(Eval("None").has_value());
  const agentpb::EvalResponse printed = Eval("import sys, os\nprint('hi')\nsys.stderr.write('oops')\nos.system('echo from a child')\n'done'");
  EXPECT_EQ(printed.stdout_data(), "hi\nfrom a child\n");
  EXPECT_EQ(printed.stderr_data(), "oops");
  EXPECT_EQ(printed.value(), "'done'");
  EXPECT_EQ(Ping().runner(), agentpb::RUNNER_STATE_READY);
}

TEST_F(AgentTest, PrepareReseedsTheRunnerAndReportsWhatItMayNotDoHere) {
  StartAgent();
  EXPECT_EQ(Eval("import random; random.seed(1); random.random()").value(), Eval("random.seed(1); random.random()").value());
  Eval("random.seed(1)");
  agentpb::PrepareRequest request;
  request.set_entropy(std::string(64, 'e'));
  request.set_hostname("child-1");
  request.set_generation(7);
  const auto response = Run(client_->Prepare(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  std::vector<std::string> failed;
  for (const agentpb::PrepareFailure& failure : response->failures()) { failed.push_back(failure.step()); }
  EXPECT_EQ(failed, (std::vector<std::string>{"entropy", "hostname"}));
  EXPECT_EQ(Ping().generation(), 7u);
  EXPECT_NE(Eval("random.random()").value(), "0.13436424411240122");
}

}  // namespace
}  // namespace forkd::guest
