#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "guest/agent/testing/agent_fixture.h"
#include "guest/ttrpc/frame.h"
#include "guest/ttrpc/sync.h"
#include "guest/ttrpc/ttrpc.pb.h"

namespace forkd::guest {
namespace {

TEST_F(AgentTest, PingSaysWhoAnswers) {
  StartAgent();
  const agentpb::PingResponse ping = Ping();
  EXPECT_EQ(ping.protocol(), 1u);
  EXPECT_GT(ping.uptime_ns(), 0u);
  EXPECT_EQ(ping.boot_id().size(), 36u);
  EXPECT_EQ(ping.runner(), agentpb::RUNNER_STATE_STOPPED);
  EXPECT_EQ(ping.running_execs(), 0u);
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

TEST_F(AgentTest, PrepareRefusesMalformedIdentitiesBeforeItDoesAnything) {
  StartAgent();
  const auto refused = [this](const std::function<void(agentpb::PrepareRequest*)>& spoil, const std::string& field) {
    agentpb::PrepareRequest request;
    request.set_entropy(std::string(64, 'e'));
    request.set_generation(9);
    spoil(&request);
    const absl::Status status = Run(client_->Prepare(request, Soon())).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_NE(std::string(status.message()).find(field), std::string::npos) << status;
  };
  refused([](auto* request) { request->set_entropy(std::string(63, 'e')); }, "entropy");
  refused([](auto* request) { request->set_entropy(std::string(513, 'e')); }, "entropy");
  refused([](auto* request) { request->set_hostname("under_score"); }, "hostname");
  refused([](auto* request) { request->set_hostname(std::string(65, 'a')); }, "hostname");
  refused([](auto* request) { request->set_machine_id("0123456789ABCDEF0123456789ABCDEF"); }, "machine_id");
  refused([](auto* request) { request->set_boot_id("not-a-uuid"); }, "boot_id");
  refused([](auto* request) { request->set_wall_clock_ns(-1); }, "wall_clock_ns");
  EXPECT_EQ(Ping().generation(), 0u);
}

TEST_F(AgentTest, AnIdleAgentUsesNoCpuAndLittleMemory) {
  StartAgent();
  Eval("1");
  Exec({"true"});
  const auto switches = [this] {
    std::ifstream file("/proc/" + std::to_string(agent_->pid()) + "/status");
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with("voluntary_ctxt_switches:")) { return std::stol(line.substr(24)); }
    }
    return -1L;
  };
  Ping();
  // Its answer is here before it sleeps again.
  long before = -1;
  EXPECT_TRUE(Eventually([&] {
    const long last = std::exchange(before, switches());
    return last == before;
  }));
  std::this_thread::sleep_for(milliseconds(500));  // The claim is that nothing happens in a stretch of time.
  EXPECT_EQ(switches(), before);
  EXPECT_LT(agent_->PrivateKib(), 1024);
}

Task<void> HoldEval(std::shared_ptr<AgentClient> client, absl::Status* status, bool* done) {
  agentpb::EvalRequest request;
  request.set_code("import time; time.sleep(0.5); held = 1");
  *status = (co_await client->Eval(request, Soon())).status();
  *done = true;
}

TEST_F(AgentTest, ANewConnectionBeginsCleanWhateverWasUnderWay) {
  StartAgent();
  // Output, input and a queue of frames in both directions, cut at many places.
  for (int round = 0; round < 25; ++round) {
    std::shared_ptr<ExecStream> loud = Start(Program({"cat", "/dev/zero"}));
    agentpb::ExecStart silent = Program({"sleep", "600"});
    silent.set_stdin_open(true);
    std::shared_ptr<ExecStream> fed = Start(silent);
    EXPECT_TRUE(Run(loud->Next(Soon())).ok());
    EXPECT_TRUE(Run(fed->WriteStdin(std::string(100'000 + round * 977, 'x'), Soon())).ok());
    const std::shared_ptr<AgentClient> old = client_;
    Connect();
    EXPECT_EQ(Exec({"echo", "clean"}).stdout_data, "clean\n");
    EXPECT_TRUE(Eventually([&] { return old->closed(); }));
    EXPECT_EQ(ReasonOf(old->status()), "AGENT_UNREACHABLE");
    // What had come is still delivered, then the error.
    absl::StatusOr<ExecEvent> event = Run(loud->Next(Soon()));
    while (event.ok()) { event = Run(loud->Next(Soon())); }
    EXPECT_EQ(ReasonOf(event.status()), "AGENT_UNREACHABLE");
    Release(&loud);
    Release(&fed);
    EXPECT_EQ(Ping().running_execs(), 2u) << "orphans live until they are told to go";
    agentpb::PrepareRequest request;
    request.set_entropy(std::string(64, 'e'));
    request.set_kill_orphans(true);
    const absl::StatusOr<agentpb::PrepareResponse> prepared = Run(client_->Prepare(request, Soon()));
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    EXPECT_EQ(prepared->orphans_killed(), 2u);
    EXPECT_TRUE(Eventually([&] { return Ping().running_execs() == 0; }));
  }
}

TEST_F(AgentTest, AHostCutInMidFrameLeavesNoTrace) {
  StartAgent();
  std::string frame;
  ttrpc::AppendHeader(1000, 1, ttrpc::FrameType::kRequest, 0, &frame);
  frame += std::string(1000, 'q');
  for (std::size_t keep : {1u, 5u, 9u, 10u, 11u, 500u, 1009u}) {
    UniqueFd raw = agent_->Attach();
    const std::string hello = ttrpc::EncodeHello(agent_->token(), ttrpc::RandomNonce(), 0);
    const std::string sent = hello.substr(0, keep % 2 == 0 ? 7 : hello.size()) + frame.substr(0, keep);
    ASSERT_EQ(write(raw.get(), sent.data(), sent.size()), static_cast<ssize_t>(sent.size()));
    ASSERT_TRUE(Eventually([&] {  // The relay has it.
      int left = 0;
      return ioctl(raw.get(), SIOCOUTQ, &left) == 0 && left == 0;
    }));
    Connect();
    EXPECT_EQ(Exec({"echo", "clean"}).stdout_data, "clean\n");
  }
}

TEST_F(AgentTest, AnEvaluationThatLostItsHostStillKeepsItsState) {
  StartAgent();
  Eval("1");
  absl::Status status;
  bool done = false;
  runtime_.Spawn(HoldEval(client_, &status, &done));
  ASSERT_TRUE(Eventually([&] { return Ping().runner() == agentpb::RUNNER_STATE_BUSY; }));
  const std::shared_ptr<AgentClient> old = client_;
  Connect();
  EXPECT_EQ(Eval("held").value(), "1");
  EXPECT_TRUE(Eventually([&] { return Run([](bool* done) -> Task<bool> { co_return *done; }(&done)); }));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(AgentTest, OneGuestTakesAnyNumberOfConnections) {
  StartAgent();
  for (int i = 0; i < 200; ++i) {
    Connect();
    EXPECT_EQ(Ping().protocol(), 1u);
  }
}

TEST_F(AgentTest, AnUnknownMethodIsUnimplementedAndTheConnectionLives) {
  StartAgent();
  // A host that is newer than the agent: by hand, since the client has no such call.
  UniqueFd raw = agent_->Attach();
  const ttrpc::Nonce nonce = ttrpc::RandomNonce();
  std::string bytes = ttrpc::EncodeHello(agent_->token(), nonce, 0);
  ttrpc::Request request;
  request.set_service("forkd.agent.v1.AgentService");
  request.set_method("Levitate");
  const std::string body = request.SerializeAsString();
  for (uint32_t id : {1u, 3u}) {
    ttrpc::AppendHeader(body.size(), id, ttrpc::FrameType::kRequest, id == 3 ? ttrpc::kFlagRemoteOpen : 0, &bytes);
    bytes += body;
  }
  ASSERT_EQ(write(raw.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  ttrpc::AnswerScanner scanner(agent_->token(), nonce);
  ttrpc::FrameParser parser;
  bool synced = false;
  int refused = 0;
  while (refused < 2) {
    char buffer[4096];
    const ssize_t got = read(raw.get(), buffer, sizeof buffer);
    ASSERT_GT(got, 0);
    std::span<const char> in(buffer, static_cast<std::size_t>(got));
    synced = synced || scanner.Feed(&in);
    while (synced && parser.Feed(&in) == ttrpc::FrameParser::Result::kFrame) {
      ttrpc::Response response;
      ASSERT_TRUE(response.ParseFromString(parser.frame().data));
      EXPECT_EQ(response.status().code(), 12);
      ++refused;
    }
  }
}

}  // namespace
}  // namespace forkd::guest
