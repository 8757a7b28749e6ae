#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "base/error.h"
#include "guest/agent/testing/agent_fixture.h"

namespace forkd::guest {
namespace {

// What is left of the process group after its leader's end.
agentpb::ExecEnd EndOf(const ExecEvent& event) {
  EXPECT_EQ(event.kind, ExecEvent::Kind::kEnd);
  return event.end;
}

bool ProcessLives(const std::string& pid) { return kill(static_cast<pid_t>(std::stol(pid)), 0) == 0; }

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

TEST_F(AgentTest, ABadStartIsRefusedByField) {
  StartAgent();
  const auto refused = [this](const agentpb::ExecStart& start, const std::string& field) {
    const absl::StatusOr<ExecResult> result = Run(client_->Exec(start, 1000, Soon()));
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_EQ(ReasonOf(result.status()), "INVALID_FIELD");
    EXPECT_NE(std::string(result.status().message()).find(field), std::string::npos) << result.status();
  };
  refused(Program({}), "argv");
  refused(Program({""}), "argv");
  refused(Program({"echo", std::string("a\0b", 3)}), "argv");
  refused(Program(std::vector<std::string>(4097, "a")), "argv");
  refused(Program({"echo", std::string(1 << 20, 'a')}), "argv");
  agentpb::ExecStart start = Program({"true"});
  start.add_env("no-equals-sign");
  refused(start, "env");
  start = Program({"true"});
  start.set_cwd("relative/path");
  refused(start, "cwd");
  EXPECT_EQ(Exec({"true"}).end.exit_code(), 0);
}

TEST_F(AgentTest, EachWayNotToStartHasItsReason) {
  StartAgent();
  agentpb::ExecStart start = Program({"true"});
  start.set_cwd("/no/such/folder");
  EXPECT_EQ(Exec(start).end.exec_error().reason(), "CWD_UNUSABLE");
  start = Program({"true"});
  start.set_user("nobody-of-that-name");
  EXPECT_EQ(Exec(start).end.exec_error().reason(), "USER_UNKNOWN");
  const std::string folder = agent_->folder();
  Shell("printf '#!/no/such/interpreter\\n' > " + folder + "/script; chmod +x " + folder + "/script");
  const ExecResult script = Exec({folder + "/script"});
  EXPECT_EQ(script.end.exec_error().reason(), "NOT_FOUND");
  EXPECT_NE(script.end.exec_error().message().find("interpreter"), std::string::npos) << script.end.exec_error().message();
  Shell("echo plain text > " + folder + "/text; chmod +x " + folder + "/text");
  EXPECT_EQ(Exec({folder + "/text"}).end.exec_error().reason(), "BAD_FORMAT");
}

TEST_F(AgentTest, ASignalsDeathIsReportedAsASignal) {
  StartAgent();
  EXPECT_EQ(Shell("kill -SEGV $$").end.signal(), 11);
  std::shared_ptr<ExecStream> stream = Start(Program({"sh", "-c", "echo ready; sleep 60"}));
  ReadUntil(stream, "ready");
  EXPECT_TRUE(Run(stream->Signal(15, Soon())).ok());
  EXPECT_EQ(EndOf(NextOf(stream)).signal(), 15);
  const absl::StatusOr<ExecEvent> more = Run(stream->Next(Soon()));
  EXPECT_EQ(more.status().code(), absl::StatusCode::kOutOfRange);
  Release(&stream);
}

TEST_F(AgentTest, SignalExecReachesAProgramByItsId) {
  StartAgent();
  std::shared_ptr<ExecStream> stream = Start(Program({"sleep", "60"}));
  const absl::StatusOr<ExecEvent> started = Run(stream->Next(Soon()));
  ASSERT_TRUE(started.ok());
  ASSERT_EQ(started->kind, ExecEvent::Kind::kStarted);
  EXPECT_TRUE(Run(client_->SignalExec(started->started.exec_id(), 9, Soon())).ok());
  EXPECT_EQ(EndOf(NextOf(stream)).signal(), 9);
  EXPECT_EQ(Run(client_->SignalExec(started->started.exec_id(), 9, Soon())).code(), absl::StatusCode::kNotFound);
  Release(&stream);
}

TEST_F(AgentTest, ChildrenStartWithDefaultSignalsInASessionOfTheirOwn) {
  StartAgent();
  const ExecResult result = Shell("grep -E '^Sig(Blk|Ign)' /proc/self/status; ps -o sid= -p $$ | tr -d ' '; echo $$; ls /proc/self/fd | wc -l");
  const std::string& out = result.stdout_data;
  EXPECT_NE(out.find("SigBlk:\t0000000000000000"), std::string::npos) << out;
  EXPECT_NE(out.find("SigIgn:\t0000000000000000"), std::string::npos) << out;
  std::istringstream lines(out.substr(out.find('\n', out.find("SigIgn")) + 1));
  std::string session;
  std::string pid;
  std::string descriptors;
  lines >> session >> pid >> descriptors;
  EXPECT_EQ(session, pid);
  EXPECT_EQ(descriptors, "4");  // 0, 1, 2, and the one that lists them.
}

TEST_F(AgentTest, TimeoutKillsTheWholeGroup) {
  StartAgent();
  agentpb::ExecStart start = Program({"sh", "-c", "sleep 600 & echo $!; sleep 600"});
  start.set_timeout_ns(200'000'000);
  const ExecResult result = Exec(start);
  EXPECT_TRUE(result.end.timed_out());
  EXPECT_GE(result.end.duration_ns(), 200'000'000u);
  EXPECT_LT(result.end.duration_ns(), 5'000'000'000u);
  EXPECT_TRUE(Eventually([&] { return !ProcessLives(result.stdout_data); }));
}

TEST_F(AgentTest, ABackgroundChildThatHoldsTheOutputDoesNotHoldUpTheEnd) {
  StartAgent();
  const auto before = std::chrono::steady_clock::now();
  const ExecResult result = Shell("sleep 600 & echo $!");
  EXPECT_LT(std::chrono::steady_clock::now() - before, seconds(5));
  EXPECT_EQ(result.end.exit_code(), 0);
  EXPECT_TRUE(Eventually([&] { return !ProcessLives(result.stdout_data); }));
  // One that has left the group lives on; only its output is lost.
  const ExecResult left = Shell("setsid sh -c 'echo $$; exec sleep 600' & sleep 0.2");
  EXPECT_EQ(left.end.exit_code(), 0);
  EXPECT_TRUE(left.end.output_cut());
  EXPECT_TRUE(ProcessLives(left.stdout_data));
  kill(static_cast<pid_t>(std::stol(left.stdout_data)), SIGKILL);
}

TEST_F(AgentTest, DroppingTheStreamKillsTheGroupUnlessDetached) {
  StartAgent();
  for (bool detached : {false, true}) {
    agentpb::ExecStart start = Program({"sh", "-c", "echo $$; exec sleep 600"});
    start.set_detached(detached);
    std::shared_ptr<ExecStream> stream = Start(start);
    const std::string pid = ReadUntil(stream, "\n");
    Release(&stream);
    if (detached) {
      Ping();  // The cancellation has been read by now.
      EXPECT_TRUE(ProcessLives(pid));
      kill(static_cast<pid_t>(std::stol(pid)), SIGKILL);
    }
    EXPECT_TRUE(Eventually([&] { return !ProcessLives(pid); }));
  }
  EXPECT_TRUE(Eventually([&] { return Ping().running_execs() == 0; }));
}

TEST_F(AgentTest, StdinArrivesWholeAndItsEndIsSeen) {
  StartAgent();
  std::string data;
  for (int i = 0; i < 400'000; ++i) { data += std::to_string(i) + "\n"; }
  agentpb::ExecStart start = Program({"cksum"});
  const ExecResult result = Exec(start, data);
  EXPECT_EQ(result.end.exit_code(), 0);
  EXPECT_NE(result.stdout_data.find(" " + std::to_string(data.size())), std::string::npos) << result.stdout_data;
  // Without stdin there is an end at once.
  EXPECT_EQ(Exec({"cat"}).end.exit_code(), 0);
}

TEST_F(AgentTest, StdinThatIsNotReadBlocksTheWriterAlone) {
  StartAgent();
  agentpb::ExecStart start = Program({"sleep", "60"});
  start.set_stdin_open(true);
  std::shared_ptr<ExecStream> stream = Start(start);
  const absl::Status written = Run(stream->WriteStdin(std::string(1 << 20, 'x'), Deadline::In(milliseconds(200))));
  EXPECT_EQ(written.code(), absl::StatusCode::kDeadlineExceeded) << written;
  EXPECT_EQ(Exec({"true"}).end.exit_code(), 0);
  Release(&stream);
}

TEST_F(AgentTest, StdinAfterTheProgramClosedItIsDropped) {
  StartAgent();
  agentpb::ExecStart start = Program({"sh", "-c", "exec <&-; echo closed; sleep 0.3; exit 3"});
  start.set_stdin_open(true);
  std::shared_ptr<ExecStream> stream = Start(start);
  ReadUntil(stream, "closed");
  const absl::Status written = Run(stream->WriteStdin(std::string(4 << 20, 'x'), Soon()));
  EXPECT_TRUE(written.ok()) << written;
  EXPECT_EQ(EndOf(NextOf(stream)).exit_code(), 3);
  Release(&stream);
}

TEST_F(AgentTest, EnvironmentFolderAndUserAreAsAsked) {
  StartAgent();
  agentpb::ExecStart start = Program({"sh", "-c", "echo $GREETING:$PATH:$EMPTY:$(pwd)"});
  start.add_env("GREETING=hello world");
  start.add_env("EMPTY=");
  start.set_cwd("/usr");
  EXPECT_EQ(Exec(start).stdout_data, "hello world:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin::/usr\n");
  start = Program({"env"});
  start.add_env("PATH=/usr/bin:/bin");
  const std::string environment = Exec(start).stdout_data;
  EXPECT_NE(environment.find("PATH=/usr/bin:/bin\n"), std::string::npos);
  EXPECT_EQ(environment.find("TEST_TMPDIR"), std::string::npos) << "the agent's own environment leaked";
  if (geteuid() != 0) { GTEST_SKIP() << "changing the user needs root"; }
  start = Program({"sh", "-c", "id -u; id -g; echo $HOME $USER"});
  start.set_user("nobody");
  start.set_cwd("/");
  const ExecResult nobody = Exec(start);
  if (nobody.end.has_exec_error()) { GTEST_SKIP() << "this root may not become another user: " << nobody.end.exec_error().message(); }
  EXPECT_EQ(nobody.stdout_data, "65534\n65534\n/nonexistent nobody\n");
  start.set_user("12345");
  EXPECT_EQ(Exec(start).stdout_data.substr(0, 12), "12345\n12345\n");
}

TEST_F(AgentTest, ATerminalHasASizeJobControlAndASignalKey) {
  StartAgent();
  agentpb::ExecStart start = Program({"bash", "--norc", "-c", "tty; stty size; read line; stty size; echo got $line; trap 'echo interrupted; exit 5' INT; echo waiting; while :; do sleep 0.05; done"});
  start.set_tty(true);
  start.set_stdin_open(true);
  start.set_rows(33);
  start.set_cols(111);
  std::shared_ptr<ExecStream> stream = Start(start);
  const std::string greeting = ReadUntil(stream, "33 111");
  EXPECT_NE(greeting.find("/dev/pts/"), std::string::npos);
  EXPECT_TRUE(Run(stream->Resize(44, 122, Soon())).ok());
  EXPECT_TRUE(Run(stream->WriteStdin("abc\n", Soon())).ok());
  EXPECT_NE(ReadUntil(stream, "waiting").find("44 122"), std::string::npos);
  EXPECT_TRUE(Run(stream->WriteStdin("\x03", Soon())).ok());
  EXPECT_NE(ReadUntil(stream, "interrupted").find("^C"), std::string::npos);
  ExecEvent event = NextOf(stream);
  while (event.kind != ExecEvent::Kind::kEnd) { event = NextOf(stream); }
  EXPECT_EQ(event.end.exit_code(), 5);
  Release(&stream);
}

TEST_F(AgentTest, ClosingATerminalsStdinTypesEndOfFile) {
  StartAgent();
  agentpb::ExecStart start = Program({"cat"});
  start.set_tty(true);
  start.set_stdin_open(true);
  std::shared_ptr<ExecStream> stream = Start(start);
  EXPECT_TRUE(Run(stream->WriteStdin("line\n", Soon())).ok());
  ReadUntil(stream, "line\r\nline\r\n");
  EXPECT_TRUE(Run(stream->CloseStdin(Soon())).ok());
  EXPECT_EQ(EndOf(NextOf(stream)).exit_code(), 0);
  Release(&stream);
}

TEST_F(AgentTest, OutputBeyondTheCapIsDroppedAndSaidSo) {
  StartAgent();
  const absl::StatusOr<ExecResult> result = Run(client_->Exec(Program({"sh", "-c", "head -c 100000 /dev/zero; echo end >&2"}), 1000, Soon()));
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->stdout_data.size(), 1000u);
  EXPECT_TRUE(result->stdout_truncated);
  EXPECT_FALSE(result->stderr_truncated);
  EXPECT_EQ(result->end.exit_code(), 0);
}

long OwnRssKib() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmRSS:")) { return std::stol(line.substr(6)); }
  }
  return 0;
}

TEST_F(AgentTest, AGibibyteOfOutputPassesThroughBoundedMemory) {
  StartAgent();
  const long before = OwnRssKib();
  const absl::StatusOr<ExecResult> result = Run(client_->Exec(Program({"head", "-c", "1073741824", "/dev/zero"}), 1000, Deadline::In(seconds(120))));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->end.exit_code(), 0);
  EXPECT_LT(OwnRssKib() - before, 16 * 1024);
  EXPECT_LT(agent_->PrivateKib(), 8 * 1024);
}

TEST_F(AgentTest, AReaderThatStopsStopsItsProgramAndNobodyElse) {
  StartAgent();
  std::shared_ptr<ExecStream> slow = Start(Program({"cat", "/dev/zero"}));
  const ExecEvent first = NextOf(slow);
  EXPECT_EQ(first.kind, ExecEvent::Kind::kStdout);
  const long before = OwnRssKib();
  for (int i = 0; i < 20; ++i) { EXPECT_EQ(Exec({"true"}).end.exit_code(), 0); }
  EXPECT_EQ(Eval("1 + 1").value(), "2");
  EXPECT_LT(OwnRssKib() - before, 4 * 1024);
  EXPECT_LT(agent_->PrivateKib(), 8 * 1024);
  EXPECT_TRUE(Run(slow->Next(Soon())).ok());  // It goes on where it was.
  Release(&slow);
}

TEST_F(AgentTest, ASmallWindowStillDeliversEverything) {
  StartAgent();
  agentpb::ExecStart start = Program({"seq", "1", "20000"});
  start.set_output_window_bytes(100);
  const ExecResult result = Exec(start);
  EXPECT_EQ(result.end.exit_code(), 0);
  EXPECT_EQ(result.stdout_data.size(), 108894u);
  EXPECT_EQ(result.stdout_data.substr(result.stdout_data.size() - 6), "20000\n");
}

Task<void> RunMany(std::shared_ptr<AgentClient> client, int count, int* good) {
  for (int i = 0; i < count; ++i) {
    agentpb::ExecStart start;
    start.add_argv("echo");
    start.add_argv(std::to_string(i));
    const absl::StatusOr<ExecResult> result = co_await client->Exec(std::move(start), 1000, Soon());
    if (result.ok() && result->stdout_data == std::to_string(i) + "\n" && result->end.exit_code() == 0) { ++*good; }
  }
}

TEST_F(AgentTest, ManyProgramsAtOnce) {
  StartAgent();
  int good = 0;
  for (int i = 0; i < 40; ++i) { runtime_.Spawn(RunMany(client_, 5, &good)); }
  EXPECT_TRUE(Eventually([&] {
    int seen = 0;
    Go([](int* from, int* to) -> Task<void> { *to = *from; co_return; }(&good, &seen));
    return seen == 200;
  })) << good;
  EXPECT_EQ(Ping().running_execs(), 0u);
}

TEST_F(AgentTest, ADeadlineOfTheCallKillsTheProgram) {
  StartAgent();
  const absl::StatusOr<ExecResult> result = Run(client_->Exec(Program({"sleep", "600"}), 1000, Deadline::In(milliseconds(100))));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(result.status()), "DEADLINE");
  EXPECT_TRUE(Eventually([&] { return Ping().running_execs() == 0; }));
}

}  // namespace
}  // namespace forkd::guest
