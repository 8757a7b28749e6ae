// forkctl against a server with the contract's services: output, exit status, errors.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/contract.h"
#include "cli/testing/fake_daemon.h"
#include "cli/testing/golden.h"
#include "cli/testing/run_captured.h"

namespace forkd::cli {
namespace {

using Words = std::vector<std::string>;

class ForkctlTest : public testing::Test {
 protected:
  Captured Run(Words arguments, const std::string& input = "") {
    arguments.insert(arguments.begin(), {"--address", daemon_.address()});
    return RunCaptured(BuiltInContract(), arguments, input);
  }
  FakeDaemon daemon_;
};

TEST_F(ForkctlTest, AnswersLookLikeTheGoldenFiles) {
  const std::pair<std::string, Words> cases[] = {
      {"snapshot_list_table", {"snapshot", "list"}},
      {"snapshot_list_json", {"snapshot", "list", "-o", "json"}},
      {"snapshot_list_yaml", {"snapshot", "list", "-o", "yaml"}},
      {"snapshot_create_table", {"snapshot", "create", "py312", "--image", "python"}},
      {"sandbox_list_table", {"ls"}},
      {"sandbox_list_json", {"ls", "-o", "json"}},
      {"sandbox_list_yaml", {"ls", "-o", "yaml"}},
      {"sandbox_get_table", {"sandbox", "get", "sb-65f0a1b2-0001"}},
      {"watch_table", {"watch"}},
      {"doctor_table", {"doctor"}},
      {"help", {"--help"}},
      {"fork_help", {"fork", "--help"}},
      {"exec_help", {"exec", "--help"}},
  };
  for (const auto& [name, arguments] : cases) {
    const Captured run = Run(arguments);
    EXPECT_EQ(run.exit, kExitOk) << name << ": " << run.err;
    ExpectGolden(run.out, absl::StrCat("cli/testdata/", name, ".golden"));
  }
}

TEST_F(ForkctlTest, FailuresSayWhatWhyAndWhatToDo) {
  const std::pair<std::string, Words> cases[] = {
      {"error_unknown_sandbox", {"sandbox", "get", "sb-1"}},
      {"error_field", {"snapshot", "create", "big", "--image", "python", "-m", "100000"}},
      {"error_retry", {"snapshot", "create", "full", "--image", "python"}},
      {"error_dependents", {"snapshot", "rm", "py312"}},
      {"error_without_details", {"sandbox", "get", "bare"}},
  };
  for (const auto& [name, arguments] : cases) {
    const Captured run = Run(arguments);
    EXPECT_EQ(run.exit, kExitCallFailed) << name;
    EXPECT_EQ(run.out, "") << name;
    ExpectGolden(run.err, absl::StrCat("cli/testdata/", name, ".golden"));
  }
}

TEST_F(ForkctlTest, MissingDaemonIsToldWithItsAddress) {
  const Captured run = RunCaptured(BuiltInContract(), {"ls", "--address", "unix:/nonexistent/forkd.sock"});
  EXPECT_EQ(run.exit, kExitCallFailed);
  EXPECT_TRUE(absl::StrContains(run.err, "is forkd-controller running, and does it listen on unix:/nonexistent/forkd.sock?")) << run.err;
}

TEST_F(ForkctlTest, CallBeyondItsTimeoutFails) {
  const Captured run = Run({"sandbox", "get", "slow", "--timeout", "200ms"});
  EXPECT_EQ(run.exit, kExitCallFailed);
  EXPECT_TRUE(absl::StrContains(run.err, "(DEADLINE_EXCEEDED)\n  the call took longer than --timeout allows\n")) << run.err;
}

TEST_F(ForkctlTest, CallThatTheServerLacksIsTold) {
  const Captured run = Run({"host"});
  EXPECT_EQ(run.exit, kExitCallFailed);
  EXPECT_TRUE(absl::StrContains(run.err, "does not know this call")) << run.err;
}

TEST_F(ForkctlTest, UnknownCommandsAreUsageErrorsWithSuggestions) {
  const std::pair<Words, std::string> cases[] = {
      {{"snapshto"}, "\"snapshto\" is no command; did you mean snapshot?"},
      {{"sandbox", "lst"}, "\"sandbox lst\" is no command; did you mean ls or list?"},
      {{"exek", "sb"}, "did you mean exec"},
      {{"qqqqqq"}, "\"qqqqqq\" is no command\n"},
      {{"-o", "json", "snapshto"}, "did you mean snapshot?"},
      {{"x\x1b[31m"}, "\"x\\x1b[31m\" is no command"},
  };
  for (const auto& [arguments, problem] : cases) {
    const Captured run = RunCaptured(BuiltInContract(), arguments);
    EXPECT_EQ(run.exit, kExitUsage) << problem;
    EXPECT_TRUE(absl::StrContains(run.err, problem)) << run.err;
    EXPECT_EQ(run.out, "");
  }
}

TEST_F(ForkctlTest, MissingArgumentsFlagsAndGroupsAreUsageErrors) {
  const std::pair<Words, std::string> cases[] = {
      {{}, "Usage: forkctl COMMAND"},
      {{"sandbox"}, "Usage: forkctl sandbox COMMAND"},
      {{"fork"}, "SNAPSHOT_TAG is required"},
      {{"fork", "py312", "--nn", "3"}, "--nn"},
      {{"fork", "py312", "-n", "many"}, "a whole number is expected"},
      {{"exec", "sb-1"}, "ARGS is required"},
      {{"branch", "sb-1", "--mode", "fast"}, "one of full, diff, live is expected"},
      {{"ls", "--address", "http://127.0.0.1:8889"}, "is a URL; HOST:PORT or unix:PATH is expected"},
      {{"ls", "--timeout", "-3s"}, "--timeout"},
      {{"exec", "-t", "sb-1", "sh"}, "-t needs a terminal on standard input"},
      {{"exec", "-i", "--stdin", "x", "sb-1", "sh"}, "--stdin and -i or -t exclude each other"},
  };
  for (const auto& [arguments, problem] : cases) {
    const Captured run = RunCaptured(BuiltInContract(), arguments);
    EXPECT_EQ(run.exit, kExitUsage) << problem;
    EXPECT_TRUE(absl::StrContains(run.err, problem)) << run.err;
    EXPECT_EQ(run.out, "");
  }
}

TEST_F(ForkctlTest, ExecPassesOutputAndExitStatusThrough) {
  const Captured run = Run({"exec", "sb-65f0a1b2-0001", "--", "exit7"});
  EXPECT_EQ(run.exit, 7);
  EXPECT_EQ(run.out, "out\n");
  EXPECT_EQ(run.err, "err\n");
}

TEST_F(ForkctlTest, ExecWritesTheProgramsOwnBytes) {
  const Captured run = Run({"exec", "sb-65f0a1b2-0001", "binary"});
  EXPECT_EQ(run.exit, 0);
  EXPECT_EQ(run.out, std::string("\xff\x00\x1b", 3));
}

TEST_F(ForkctlTest, ExecOfKilledOrMissingProgramFailsWithTheReason) {
  Captured run = Run({"exec", "sb-65f0a1b2-0001", "killed"});
  EXPECT_EQ(run.exit, 137);
  EXPECT_EQ(run.err, "killed after 30 s\n");
  run = Run({"exec", "sb-65f0a1b2-0001", "missing"});
  EXPECT_EQ(run.exit, 127);
  EXPECT_EQ(run.err, "exec \"missing\": no such file or directory\n");
}

TEST_F(ForkctlTest, ExecAsJsonKeepsTheExitStatus) {
  const Captured run = Run({"exec", "-o", "json", "sb-65f0a1b2-0001", "exit7"});
  EXPECT_EQ(run.exit, 7);
  EXPECT_TRUE(absl::StrContains(run.out, "\"exit_code\": 7")) << run.out;
}

TEST_F(ForkctlTest, ExecLeavesTheProgramsFlagsAlone) {
  for (const Words& arguments : {Words{"exec", "sb-1", "ls", "-la", "--help", "-o", "json"},
                                 Words{"exec", "-e", "A=1", "--timeout-secs=5", "sb-1", "--", "ls", "-la", "--help", "-o", "json"},
                                 Words{"exec", "sb-1", "--env", "A=1", "ls", "-la", "--help", "-o", "json"}}) {
    const Captured run = Run(arguments);
    EXPECT_EQ(run.exit, 0) << run.err;
    const v1::ExecRequest request = daemon_.sandboxes().last_exec();
    EXPECT_EQ(absl::StrJoin(request.args(), " "), "ls -la --help -o json");
    EXPECT_EQ(request.id(), "sb-1");
  }
}

TEST_F(ForkctlTest, ExecSendsEverythingThatFlagsSay) {
  const Captured run = Run({"exec", "sb-1", "-e", "A=1", "-e", "B=x=y", "-e", "A=2", "-w", "/tmp", "-u", "nobody", "--stdin", "@-", "--timeout-secs",
                            "5", "--max-output-bytes", "10", "--", "cat"});
  EXPECT_EQ(run.exit, 0) << run.err;
  const v1::ExecRequest request = daemon_.sandboxes().last_exec();
  EXPECT_EQ(request.env().at("A"), "2");
  EXPECT_EQ(request.env().at("B"), "x=y");
  EXPECT_EQ(request.env().size(), 2u);
  EXPECT_EQ(request.cwd(), "/tmp");
  EXPECT_EQ(request.user(), "nobody");
  EXPECT_EQ(request.timeout_secs(), 5);
  EXPECT_EQ(request.max_output_bytes(), 10);
}

TEST_F(ForkctlTest, EvalPrintsOutputThenResultAndFailsOnAnException) {
  Captured run = Run({"eval", "sb-1", "6*7"});
  EXPECT_EQ(run.exit, 0);
  EXPECT_EQ(run.out, "hello\n'42'\n");
  run = Run({"eval", "sb-1", "1/0"});
  EXPECT_EQ(run.exit, 1);
  EXPECT_EQ(run.out, "");
  EXPECT_EQ(run.err, "Traceback (most recent call last):\nZeroDivisionError: division by zero\n");
}

TEST_F(ForkctlTest, AbsentOptionalFieldsStayAbsent) {
  EXPECT_EQ(Run({"fork", "py312"}).exit, 0);
  EXPECT_FALSE(daemon_.sandboxes().last_create().has_n());
  EXPECT_EQ(Run({"fork", "py312", "-n", "0"}).exit, 0);
  EXPECT_TRUE(daemon_.sandboxes().last_create().has_n()) << "0 is the daemon's to refuse";
}

TEST_F(ForkctlTest, PartialFailuresAreToldBesideTheAnswer) {
  Captured run = Run({"fork", "py312", "-n", "2", "--allow-partial"});
  EXPECT_EQ(run.exit, 0);
  EXPECT_TRUE(absl::StrContains(run.out, "sb-65f0a1b2-0002")) << run.out;
  EXPECT_FALSE(absl::StrContains(run.out, "VMM_FAILED")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.err, "VMM_FAILED  qemu ended with status 1")) << run.err;
  run = Run({"fork", "py312", "-o", "json"});
  EXPECT_TRUE(absl::StartsWith(run.out, "[\n  {\n    \"id\": \"sb-65f0a1b2-0001\"")) << run.out;
}

TEST_F(ForkctlTest, CallsWithoutAnAnswerSayWhatWasDone) {
  EXPECT_EQ(Run({"rm", "sb-65f0a1b2-0001"}).out, "deleted sb-65f0a1b2-0001\n");
  EXPECT_EQ(Run({"rm", "sb-65f0a1b2-0001", "-o", "json"}).out, "{}\n");
}

TEST_F(ForkctlTest, SwitchesWithATrueDefaultCanBeTurnedOff) {
  EXPECT_TRUE(absl::StrContains(Run({"branch", "sb-1", "-t", "b1", "--mode", "live", "--no-wait"}).out, "writing"));
  EXPECT_TRUE(absl::StrContains(Run({"branch", "sb-1", "-t", "b1", "--mode", "live", "--wait"}).out, "ready"));
}

TEST_F(ForkctlTest, FilesGoThroughStandardInputAndOutput) {
  Captured run = Run({"file", "read", "sb-1", "/etc/os-release"});
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out, std::string("first\0second\xff", 13));
  run = Run({"file", "read", "sb-1", "/broken"});
  EXPECT_EQ(run.exit, kExitCallFailed) << "a file that breaks off must not look whole";
  run = Run({"file", "write", "sb-1", "/tmp/x", "--mode", "0600"}, std::string(150'000, 'x'));
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_TRUE(absl::StrContains(run.out, "146.5 KiB")) << run.out;
  EXPECT_TRUE(absl::StrContains(run.out, "0600")) << run.out;
  run = Run({"file", "write", "sb-1", "/refused"}, std::string(8'000'000, 'x'));
  EXPECT_EQ(run.exit, kExitCallFailed);
  EXPECT_TRUE(absl::StrContains(run.err, "(PERMISSION_DENIED GUEST_FILE)")) << run.err;
}

TEST_F(ForkctlTest, InteractiveExecWithoutATerminalIsAPipe) {
  const std::string input(300'000, 'y');
  const Captured run = Run({"exec", "-i", "sb-65f0a1b2-0001", "cat"}, input);
  EXPECT_EQ(run.exit, 7);
  EXPECT_EQ(run.out, input);
  EXPECT_EQ(run.err, "eof\n");
}

TEST_F(ForkctlTest, InteractiveExecTellsErrors) {
  Captured run = Run({"exec", "-i", "sb-65f0a1b2-0001", "missing"});
  EXPECT_EQ(run.exit, 127);
  EXPECT_EQ(run.err, "exec \"missing\": no such file or directory\n");
  run = Run({"exec", "-i", "sb-9", "cat"});
  EXPECT_EQ(run.exit, kExitCallFailed);
  EXPECT_TRUE(absl::StrContains(run.err, "(NOT_FOUND SANDBOX_UNKNOWN)")) << run.err;
}

TEST_F(ForkctlTest, CompletionKnowsCommandsAndFlags) {
  const auto complete = [](Words words) {
    words.insert(words.begin(), {"__complete", "--"});
    return RunCaptured(BuiltInContract(), words).out;
  };
  EXPECT_EQ(complete({"snap"}), "snapshot\n");
  EXPECT_EQ(complete({"snapshot", "c"}), "create\n");
  EXPECT_EQ(complete({"fork", "--l"}), "--label\n--lifetime-secs\n");
  EXPECT_EQ(complete({"fork", "py312", "--allow"}), "--allow-partial\n");
  EXPECT_EQ(complete({"nonsense", ""}), "");
  EXPECT_TRUE(absl::StrContains(complete({""}), "sandbox\n"));
  EXPECT_TRUE(absl::StrContains(RunCaptured(BuiltInContract(), {"completion", "bash"}).out, "complete -o default -F _forkctl forkctl"));
}

TEST_F(ForkctlTest, VersionAndHelpNeedNoDaemon) {
  EXPECT_EQ(RunCaptured(BuiltInContract(), {"version"}).out, absl::StrCat("forkctl ", kVersion, "\n"));
  EXPECT_EQ(RunCaptured(BuiltInContract(), {"--version"}).out, absl::StrCat("forkctl ", kVersion, "\n"));
  EXPECT_EQ(RunCaptured(BuiltInContract(), {"help", "fork"}).out, RunCaptured(BuiltInContract(), {"fork", "--help"}).out);
}

TEST(ContractTest, EveryFieldAndMethodIsDocumentedAndEveryFlagIsUnique) {
  const auto contract = Contract::Load(BuiltInContract());
  ASSERT_TRUE(contract.ok());
  EXPECT_GE((*contract)->methods().size(), 24u);
  for (const google::protobuf::MethodDescriptor* method : (*contract)->methods()) {
    EXPECT_FALSE(CommentOf(method).empty()) << method->full_name();
    for (const google::protobuf::Descriptor* type : {method->input_type(), method->output_type()}) {
      for (int i = 0; i < type->field_count(); ++i) {
        EXPECT_FALSE(CommentOf(type->field(i)).empty()) << type->field(i)->full_name();
      }
    }
    if (!OptionsOf(method).cli().by_hand()) {
      // CLI11 throws where two options share a name: help builds them all.
      std::string command = OptionsOf(method).cli().command();
      Words words;
      for (size_t end; (end = command.find(' ')) != std::string::npos; command.erase(0, end + 1)) {
        words.push_back(command.substr(0, end));
      }
      words.push_back(command);
      words.push_back("--help");
      EXPECT_EQ(RunCaptured(BuiltInContract(), words).exit, kExitOk) << method->full_name();
    }
  }
}

}  // namespace
}  // namespace forkd::cli
