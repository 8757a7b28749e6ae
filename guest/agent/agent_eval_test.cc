#include <signal.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "guest/agent/testing/agent_fixture.h"

namespace forkd::guest {
namespace {

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

TEST_F(AgentTest, AnExceptionComesWithTypeMessageAndTraceback) {
  StartAgent();
  const agentpb::EvalResponse response = Eval("def f():\n    return 1 / 0\nf()");
  EXPECT_EQ(response.error(), "ZeroDivisionError: division by zero");
  EXPECT_FALSE(response.has_value());
  EXPECT_NE(response.traceback().find("line 2, in f\n    return 1 / 0"), std::string::npos) << response.traceback();
  EXPECT_EQ(response.traceback().find("runner.py"), std::string::npos) << response.traceback();
  EXPECT_FALSE(response.runner_restarted());
  EXPECT_EQ(Eval("1 +").error().substr(0, 12), "SyntaxError:");
  EXPECT_EQ(Eval("raise SystemExit(3)").error(), "SystemExit: 3");
  EXPECT_EQ(Eval("raise KeyboardInterrupt").error(), "KeyboardInterrupt");
  EXPECT_EQ(Eval("f.__name__").value(), "'f'");
}

TEST_F(AgentTest, CodeThatHangsIsKilledReportedAndTheRunnerIsNew) {
  StartAgent();
  Eval("kept = 1");
  const agentpb::EvalResponse response = Eval("print('before', flush=True)\nwhile True: pass", milliseconds(300));
  EXPECT_TRUE(response.timed_out());
  EXPECT_TRUE(response.runner_restarted());
  EXPECT_EQ(response.error().substr(0, 13), "TimeoutError:");
  EXPECT_EQ(response.stdout_data(), "before\n");
  EXPECT_EQ(Eval("kept").error(), "NameError: name 'kept' is not defined");
}

TEST_F(AgentTest, ARunnerThatDiesIsReportedAndTheNextCodeRuns) {
  StartAgent();
  for (const char* code : {"import os; os._exit(3)", "import os; os.kill(os.getpid(), 11)", "import os; os.close(3)"}) {
    const agentpb::EvalResponse response = Eval(code);
    EXPECT_TRUE(response.runner_restarted()) << code;
    EXPECT_FALSE(response.timed_out());
    EXPECT_EQ(response.error().substr(0, 12), "RunnerError:") << response.error();
    EXPECT_EQ(Eval("2 + 2").value(), "4");
  }
  // Between evaluations nobody is told, and nobody needs to be.
  Eval("import threading, os; threading.Timer(0.05, lambda: os._exit(1)).start()");
  EXPECT_TRUE(Eventually([&] { return Ping().runner() == agentpb::RUNNER_STATE_STOPPED; }));
  EXPECT_EQ(Eval("3 + 3").value(), "6");
}

TEST_F(AgentTest, ARunnerThatTalksNonsenseIsReplaced) {
  StartAgent();
  for (const char* bytes : {"b'\\xff' * 64", "b'\\0\\0\\0\\1\\x07'", "b'\\0\\0\\0\\6\\x81\\1\\xff\\0\\0\\0'", "b'\\0\\0\\0\\0'"}) {
    const agentpb::EvalResponse response = Eval(std::string("import os, time\nos.write(3, ") + bytes + ")\ntime.sleep(60)");
    EXPECT_TRUE(response.runner_restarted()) << bytes;
    EXPECT_EQ(response.error().substr(0, 12), "RunnerError:") << response.error();
    EXPECT_FALSE(response.timed_out());
    EXPECT_EQ(Eval("'fine'").value(), "'fine'");
  }
}

TEST_F(AgentTest, LargeOutputAndValuesAreCut) {
  StartAgent();
  agentpb::EvalRequest request;
  request.set_code("import sys\nfor _ in range(1000): print('x' * 10000)\nprint('e' * 200, file=sys.stderr)\n'v' * 5000");
  request.set_max_output_bytes(100);
  const absl::StatusOr<agentpb::EvalResponse> response = Run(client_->Eval(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->stdout_data(), std::string(100, 'x'));
  EXPECT_TRUE(response->stdout_truncated());
  EXPECT_EQ(response->stderr_data(), std::string(100, 'e'));
  EXPECT_TRUE(response->stderr_truncated());
  EXPECT_EQ(response->value(), "'" + std::string(99, 'v'));
  EXPECT_TRUE(response->value_truncated());
  // The next one begins afresh.
  const agentpb::EvalResponse next = Eval("print('small')");
  EXPECT_EQ(next.stdout_data(), "small\n");
  EXPECT_FALSE(next.stdout_truncated());
}

TEST_F(AgentTest, TextThatIsNoTextPasses) {
  StartAgent();
  EXPECT_EQ(Eval("'\\ud800 \u00e9\u4e2d'").value(), "'\\ud800 \u00e9\u4e2d'");
  EXPECT_EQ(Eval("raise ValueError('\\ud800')").error(), "ValueError: \\ud800");
  EXPECT_EQ(Eval("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n'); None").stdout_data(), "\xff\xfe\n");
  EXPECT_EQ(Eval("class Bad:\n    def __repr__(self): raise RuntimeError('no')\nBad()").error(), "RuntimeError: no");
  EXPECT_EQ(Eval("class Odd(Exception):\n    def __str__(self): raise RuntimeError('no')\nraise Odd").error(), "Odd: <its text cannot be had>");
}

TEST_F(AgentTest, AForkInTheCodeAnswersOnce) {
  StartAgent();
  EXPECT_EQ(Eval("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n'parent' if pid else 'child'").value(), "'parent'");
  EXPECT_EQ(Eval("1").value(), "1");
}

Task<void> EvalInto(std::shared_ptr<AgentClient> client, std::string code, milliseconds timeout, absl::StatusOr<agentpb::EvalResponse>* response, int* done) {
  agentpb::EvalRequest request;
  request.set_code(std::move(code));
  request.set_timeout_ns(static_cast<uint64_t>(std::chrono::nanoseconds(timeout).count()));
  *response = co_await client->Eval(std::move(request), Soon());
  ++*done;
}

TEST_F(AgentTest, EvaluationsQueueAndTheQueueHasABound) {
  StartAgent();
  std::vector<absl::StatusOr<agentpb::EvalResponse>> responses(70, absl::UnknownError(""));
  int done = 0;
  for (int i = 0; i < 70; ++i) {
    runtime_.Spawn(EvalInto(client_, i == 0 ? "import time; time.sleep(0.3); n = 0" : "n += 1; n", seconds(20), &responses[i], &done));
  }
  ASSERT_TRUE(Eventually([&] { return Run([](int* done) -> Task<int> { co_return *done; }(&done)) == 70; }));
  for (int i = 1; i < 64; ++i) {
    ASSERT_TRUE(responses[i].ok()) << i << responses[i].status();
    EXPECT_EQ(responses[i]->value(), std::to_string(i));
  }
  for (int i = 64; i < 70; ++i) {
    EXPECT_EQ(responses[i].status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(ReasonOf(responses[i].status()), "LIMIT_REACHED");
  }
}

TEST_F(AgentTest, TimeInTheQueueCounts) {
  StartAgent();
  absl::StatusOr<agentpb::EvalResponse> slow = absl::UnknownError("");
  absl::StatusOr<agentpb::EvalResponse> waiting = absl::UnknownError("");
  int done = 0;
  Eval("import time");
  runtime_.Spawn(EvalInto(client_, "time.sleep(0.6); 'slept'", seconds(20), &slow, &done));
  runtime_.Spawn(EvalInto(client_, "1", milliseconds(100), &waiting, &done));
  ASSERT_TRUE(Eventually([&] { return Run([](int* done) -> Task<int> { co_return *done; }(&done)) == 2; }));
  EXPECT_TRUE(waiting->timed_out());
  EXPECT_FALSE(waiting->runner_restarted());
  EXPECT_EQ(slow->value(), "'slept'");
}

TEST_F(AgentTest, WithoutARunnerEvalSaysSo) {
  StartAgent("");
  EXPECT_EQ(Ping().runner(), agentpb::RUNNER_STATE_ABSENT);
  agentpb::EvalRequest request;
  request.set_code("1");
  const absl::StatusOr<agentpb::EvalResponse> response = Run(client_->Eval(request, Soon()));
  EXPECT_EQ(response.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(response.status()), "RUNNER_UNAVAILABLE");
}

TEST_F(AgentTest, ARunnerThatEndsAtOnceIsUnavailableNotALoop) {
  StartAgent("/bin/false");
  agentpb::EvalRequest request;
  request.set_code("1");
  const absl::StatusOr<agentpb::EvalResponse> response = Run(client_->Eval(request, Soon()));
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(response.status()), "RUNNER_UNAVAILABLE");
  EXPECT_EQ(Ping().runner(), agentpb::RUNNER_STATE_STOPPED);
}

TEST_F(AgentTest, WarmupStartsTheRunnerRunsTheCommandAndTheCode) {
  StartAgent();
  agentpb::WarmupRequest request;
  request.set_start_runner(true);
  for (const char* argument : {"sh", "-c", "echo warm"}) { request.add_argv(argument); }
  request.set_code("warmed = 5");
  absl::StatusOr<agentpb::WarmupResponse> response = Run(client_->Warmup(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->runner_info().substr(0, 7), "python ");
  EXPECT_EQ(response->command_output(), "warm\n");
  EXPECT_EQ(response->command_end().exit_code(), 0);
  EXPECT_FALSE(response->has_code_error());
  EXPECT_EQ(Eval("warmed").value(), "5");
  request.set_argv(2, "exit 4");
  response = Run(client_->Warmup(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->command_end().exit_code(), 4);
  request.set_argv(0, "no-such-program");
  response = Run(client_->Warmup(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->command_end().exec_error().reason(), "NOT_FOUND");
  request.clear_argv();
  request.set_code("1 / 0");
  response = Run(client_->Warmup(request, Soon()));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->code_error(), "ZeroDivisionError: division by zero");
}

TEST_F(AgentTest, ABusyRunnerIsReseededWhileItsCodeRuns) {
  StartAgent();
  const std::string flag = agent_->folder() + "/go";
  for (const std::string& waiting : {std::string("time.sleep(0.01)"), std::string("pass"), std::string("subprocess.run(['sleep', '0.01'])")}) {
    Eval("import os, random, subprocess, time");
    absl::StatusOr<agentpb::EvalResponse> response = absl::UnknownError("");
    int done = 0;
    const std::string code = "random.seed(5)\nwhile not os.path.exists('" + flag + "'):\n    " + waiting + "\nrandom.random()";
    runtime_.Spawn(EvalInto(client_, code, seconds(20), &response, &done));
    ASSERT_TRUE(Eventually([&] { return Ping().runner() == agentpb::RUNNER_STATE_BUSY; }));
    std::this_thread::sleep_for(milliseconds(50));  // Into the loop.
    agentpb::PrepareRequest request;
    request.set_entropy(std::string(64, 'e'));
    const absl::StatusOr<agentpb::PrepareResponse> prepared = Run(client_->Prepare(request, Soon()));
    ASSERT_TRUE(prepared.ok());
    ASSERT_EQ(prepared->failures_size(), 1);  // Entropy, which is not this machine's to change.
    EXPECT_EQ(Ping().runner(), agentpb::RUNNER_STATE_BUSY);
    std::ofstream(flag).put('x');
    ASSERT_TRUE(Eventually([&] { return Run([](int* done) -> Task<int> { co_return *done; }(&done)) == 1; }));
    EXPECT_FALSE(response->has_error()) << response->error();
    EXPECT_NE(response->value(), "0.6229016948897019") << waiting;
    unlink(flag.c_str());
  }
}

TEST_F(AgentTest, AnIdleRunnerSleepsThroughPrepareAndIsReseededBeforeItsNextCode) {
  StartAgent();
  const pid_t runner = std::stoi(Eval("import os, random; random.seed(5); os.getpid()").value());
  // Prepare cannot be waiting for a runner that cannot run.
  ASSERT_EQ(kill(runner, SIGSTOP), 0);
  agentpb::PrepareRequest request;
  request.set_entropy(std::string(64, 'e'));
  const absl::StatusOr<agentpb::PrepareResponse> prepared = Run(client_->Prepare(request, Soon()));
  ASSERT_EQ(kill(runner, SIGCONT), 0);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->failures_size(), 1);  // Entropy, which is not this machine's to change.
  EXPECT_NE(Eval("random.random()").value(), "0.6229016948897019");
  // Once.
  Eval("random.seed(5)");
  EXPECT_EQ(Eval("random.random()").value(), "0.6229016948897019");
}

TEST_F(AgentTest, ThreadsThatGoOnAreReseededAtOnce) {
  StartAgent();
  const std::string folder = agent_->folder();
  Eval("import os, random, threading, time\ndef draw():\n    while not os.path.exists('" + folder + "/go'): time.sleep(0.01)\n    open('" + folder +
       "/tmp', 'w').write(str(random.random()))\n    os.rename('" + folder + "/tmp', '" + folder + "/drawn')\nrandom.seed(5)\nthreading.Thread(target=draw).start()");
  agentpb::PrepareRequest request;
  request.set_entropy(std::string(64, 'e'));
  ASSERT_TRUE(Run(client_->Prepare(request, Soon())).ok());
  std::ofstream(folder + "/go").put('x');
  ASSERT_TRUE(Eventually([&] { return access((folder + "/drawn").c_str(), F_OK) == 0; }));
  std::string drawn;
  std::ifstream(folder + "/drawn") >> drawn;
  EXPECT_NE(drawn, "0.6229016948897019");
  EXPECT_EQ(drawn.substr(0, 2), "0.");
}

TEST_F(AgentTest, ARunnerThatCannotBeReseededRunsNothingMore) {
  StartAgent();
  Eval("import os, random; random.seed(5); os.close(4)");
  agentpb::PrepareRequest request;
  request.set_entropy(std::string(64, 'e'));
  ASSERT_TRUE(Run(client_->Prepare(request, Soon())).ok());
  const agentpb::EvalResponse refused = Eval("print('ran'); random.random()");
  EXPECT_TRUE(refused.runner_restarted());
  EXPECT_NE(refused.error().find("could not be reseeded"), std::string::npos) << refused.error();
  EXPECT_EQ(refused.stdout_data(), "");
  EXPECT_EQ(Eval("1 + 1").value(), "2");
}

TEST_F(AgentTest, TwoClonesOfOneRunnerDrawDifferentNumbersAfterPrepare) {
  // The same seed stands for the same snapshot.
  std::vector<std::string> drawn;
  for (char entropy : {'a', 'b'}) {
    StartAgent();
    Eval("import random, ssl, uuid\nown = random.Random(5)\nrandom.seed(5)\nuuid.uuid1()");
    agentpb::PrepareRequest request;
    request.set_entropy(std::string(64, entropy));
    ASSERT_TRUE(Run(client_->Prepare(request, Soon())).ok());
    drawn.push_back(Eval("(random.random(), own.random())").value());
    Go(Drop(&client_));
  }
  EXPECT_NE(drawn[0], drawn[1]);
  EXPECT_EQ(drawn[0].find("0.6229016948897019"), std::string::npos) << "the seeded generator was not reseeded";
}

}  // namespace
}  // namespace forkd::guest
