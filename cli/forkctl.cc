#include "cli/forkctl.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include <CLI/CLI.hpp>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "cli/command_tree.h"
#include "cli/contract.h"
#include "cli/failure_text.h"
#include "cli/field_flags.h"
#include "cli/generic_call.h"
#include "cli/terminal_exec.h"
#include "cli/value_text.h"

namespace forkd::cli {
namespace pb = google::protobuf;
namespace {

// The method that -i and -t turn into a stream.
constexpr char kExecMethod[] = "forkd.v1.SandboxService.Exec";
// Unless --timeout says otherwise. Booting a parent under emulation takes minutes.
constexpr std::chrono::milliseconds kUnaryTimeout = std::chrono::minutes(10);
// Pieces of standard input.
constexpr size_t kInputPieceBytes = 64 << 10;

// Width of help, and where its descriptions begin.
constexpr size_t kHelpColumns = 110;
constexpr size_t kHelpFlagColumns = 34;

// Breaks `text` between words into lines of at most `columns`.
std::string Wrap(absl::string_view text, size_t columns) {
  std::string wrapped;
  size_t used = 0;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    const bool fits = used == 0 || used + 1 + word.size() <= columns;
    absl::StrAppend(&wrapped, used == 0 ? "" : fits ? " " : "\n", word);
    used = (fits && used > 0 ? used + 1 : 0) + word.size();
  }
  return wrapped;
}

const std::vector<std::string>& ValuedGlobalFlags() {
  static const auto* const flags = new std::vector<std::string>{"-o", "--output", "--address", "--timeout"};
  return *flags;
}

struct GlobalFlags {
  std::string output = "table";
  std::string address;
  std::string timeout;

  void AddTo(CLI::App* app) {
    const char* const from_environment = std::getenv("FORKD_ADDRESS");
    address = from_environment != nullptr && *from_environment != '\0' ? from_environment : kDefaultAddress;
    app->add_option("-o,--output", output, "How to print the answer: table, json or yaml.")
        ->type_name("FORMAT")
        ->check(CLI::IsMember({"table", "json", "yaml"}))
        ->group("Global");
    app->add_option("--address", address, "Of forkd-controller: HOST:PORT or unix:PATH [FORKD_ADDRESS, else 127.0.0.1:8890].")
        ->type_name("ADDRESS")
        ->group("Global");
    app->add_option("--timeout", timeout, "How long to wait for the answer: 30s, 5m; 0: for ever [default: 10m, streams: for ever].")
        ->type_name("TIME")
        ->group("Global");
  }

  OutputFormat format() const {
    return output == "json" ? OutputFormat::kJson : output == "yaml" ? OutputFormat::kYaml : OutputFormat::kTable;
  }
};

// Everything that one command needs while it runs.
class Command {
 public:
  Command(const Contract& contract, const CommandNode& node, const StandardStreams& streams)
      : contract_(contract),
        method_(node.method),
        cli_(OptionsOf(node.method).cli()),
        streams_(streams),
        app_(Wrap(CommentOf(node.method), kHelpColumns), absl::StrCat("forkctl ", node.path)),
        flags_(node.method->input_type(), cli_.input_field(), &app_) {
    global_.AddTo(&app_);
    app_.get_formatter()->column_width(kHelpFlagColumns);
    if (method_->full_name() == kExecMethod) {
      app_.add_flag("-i,--interactive", interactive_, "Connect standard input; the program ends this command, no timeout does.");
      app_.add_flag("-t,--tty", tty_, "Give the program a terminal.");
    }
    for (CLI::Option* option : app_.get_options()) {
      option->description(Wrap(option->get_description(), kHelpColumns - kHelpFlagColumns));
    }
    if (cli_.examples_size() > 0) {
      app_.footer(absl::StrCat("Examples:\n  ", absl::StrJoin(cli_.examples(), "\n  ")));
    }
  }

  int Run(const std::vector<std::string>& arguments) {
    // CLI11 reports by exceptions and takes the arguments in reverse.
    try {
      std::vector<std::string> parsed = KeepRestAsItIs(arguments);
      std::reverse(parsed.begin(), parsed.end());
      app_.parse(std::move(parsed));
    } catch (const CLI::CallForHelp&) {
      return Print(app_.help()) ? kExitOk : kExitCallFailed;
    } catch (const CLI::ParseError& error) {
      return Usage(error.what());
    }
    std::unique_ptr<pb::Message> request = contract_.NewMessage(method_->input_type());
    if (const absl::Status filled = flags_.Fill(request.get()); !filled.ok()) {
      return Usage(filled.message());
    }
    std::optional<std::chrono::milliseconds> deadline;
    if (const absl::Status parsed = Deadline(*request, &deadline); !parsed.ok()) {
      return Usage(parsed.message());
    }
    if (absl::StrContains(global_.address, "://")) {
      return Usage(absl::StrCat("--address \"", global_.address, "\" is a URL; HOST:PORT or unix:PATH is expected (gRPC, by default port 8890)"));
    }
    return interactive_ || tty_ ? RunInteractive(*request) : RunGeneric(request.get(), deadline);
  }

  // Long flags, for completion.
  std::vector<std::string> LongFlags() const {
    std::vector<std::string> names;
    for (const CLI::Option* option : app_.get_options()) {
      if (!option->get_group().empty() && !option->get_lnames().empty()) {
        names.push_back(absl::StrCat("--", option->get_lnames().front()));
      }
    }
    return names;
  }

 private:
  bool Print(absl::string_view text) { return WriteAllBlocking(streams_.out, text); }
  void PrintError(absl::string_view text) { WriteAllBlocking(streams_.err, text); }

  int Usage(absl::string_view problem) {
    PrintError(absl::StrCat(app_.get_name(), ": ", problem, "\n`", app_.get_name(), " --help` says what it takes\n"));
    return kExitUsage;
  }

  // Where the last positional argument takes the rest, flags in the rest are not ours: `forkctl exec ID ls -l`. Puts "--" before it.
  std::vector<std::string> KeepRestAsItIs(std::vector<std::string> arguments) const {
    int single = 0;
    int rest = 0;
    for (int i = 0; i < method_->input_type()->field_count(); ++i) {
      const pb::FieldDescriptor* field = method_->input_type()->field(i);
      if (RulesOf(field).cli().positional() > 0) {
        (field->is_repeated() ? rest : single) += 1;
      }
    }
    for (size_t i = 0; rest > 0 && i < arguments.size() && arguments[i] != "--"; ++i) {
      const std::string& argument = arguments[i];
      if (absl::StartsWith(argument, "-") && argument != "-") {
        const CLI::Option* option = app_.get_option_no_throw(argument);
        i += option != nullptr && option->get_items_expected_max() > 0 ? 1 : 0;
      } else if (single-- == 0) {
        arguments.insert(arguments.begin() + static_cast<std::ptrdiff_t>(i), "--");
        break;
      }
    }
    return arguments;
  }

  absl::Status Deadline(const pb::Message& request, std::optional<std::chrono::milliseconds>* deadline) {
    if (!global_.timeout.empty()) {
      absl::Duration given;
      int64_t seconds = 0;
      if (absl::SimpleAtoi(global_.timeout, &seconds)) {
        given = absl::Seconds(seconds);
      } else if (!absl::ParseDuration(global_.timeout, &given)) {
        return absl::InvalidArgumentError(absl::StrCat("--timeout \"", global_.timeout, "\": a time such as 30s or 5m is expected"));
      }
      if (given < absl::ZeroDuration()) {
        return absl::InvalidArgumentError(absl::StrCat("--timeout \"", global_.timeout, "\" is negative"));
      }
      if (given > absl::ZeroDuration()) {
        *deadline = absl::ToChronoMilliseconds(given);
      }
      return absl::OkStatus();
    }
    if (method_->server_streaming() || method_->client_streaming()) {
      return absl::OkStatus();
    }
    *deadline = kUnaryTimeout;
    // A call that is itself given a time must not be cut short by ours.
    const pb::FieldDescriptor* field = method_->input_type()->FindFieldByName("timeout_secs");
    if (field != nullptr && field->cpp_type() == pb::FieldDescriptor::CPPTYPE_INT64) {
      const int64_t asked = request.GetReflection()->GetInt64(request, field);
      *deadline = std::max<std::chrono::milliseconds>(kUnaryTimeout, std::chrono::seconds(std::min<int64_t>(asked, 1 << 30)) +
                                                                         std::chrono::seconds(30));
    }
    return absl::OkStatus();
  }

  // A line on a terminal's standard error while the call takes longer than a second.
  void ShowProgress(GenericCall::Clock::duration since) {
    const int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(since).count();
    if (seconds < 1 || seconds == progress_seconds_ || silent_ || ::isatty(streams_.err) == 0) {
      return;
    }
    progress_seconds_ = seconds;
    PrintError(absl::StrCat("\r", app_.get_name(), ": waiting, ", seconds, " s "));
  }
  void ClearProgress() {
    if (progress_seconds_ > 0) {
      PrintError("\r\x1b[K");
      progress_seconds_ = 0;
    }
  }

  int RunGeneric(pb::Message* request, std::optional<std::chrono::milliseconds> deadline) {
    GenericCall call(Connect(global_.address), method_, deadline, [this](GenericCall::Clock::duration since) { ShowProgress(since); });
    if (!cli_.input_field().empty()) {
      if (const absl::Status sent = SendInput(&call, request); !sent.ok()) {
        PrintError(absl::StrCat(app_.get_name(), ": ", sent.message(), "\n"));
        return kExitCallFailed;
      }
    } else {
      call.Write(*request);
      call.WritesDone();
    }
    const std::unique_ptr<pb::Message> response = contract_.NewMessage(method_->output_type());
    int exit = kExitOk;
    bool answered = false;
    Table table(method_->output_type());
    bool printed = true;
    while (printed && call.Read(response.get())) {
      ClearProgress();
      answered = true;
      if (method_->server_streaming()) {
        // Pieces come at their own pace; between them is not a wait for an answer.
        silent_ = true;
        printed = PrintPiece(*response, &table);
      }
    }
    if (!printed) {
      return kExitCallFailed;
    }
    const grpc::Status status = call.Finish();
    ClearProgress();
    if (!status.ok()) {
      PrintError(FailureText(status, method_->input_type(), global_.address));
      return kExitCallFailed;
    }
    if (!method_->server_streaming()) {
      if (!answered) {
        PrintError(absl::StrCat(app_.get_name(), ": the call succeeded without an answer\n"));
        return kExitCallFailed;
      }
      exit = PrintAnswer(*request, *response);
    }
    return exit;
  }

  // The request, with standard input as its field `input_field`, in as many messages as it takes; at least one.
  absl::Status SendInput(GenericCall* call, pb::Message* request) {
    const pb::FieldDescriptor* field = method_->input_type()->FindFieldByName(cli_.input_field());
    std::string buffer(kInputPieceBytes, '\0');
    bool first = true;
    while (true) {
      const ssize_t got = ::read(streams_.in, buffer.data(), buffer.size());
      if (got < 0) {
        if (errno == EINTR) {
          continue;
        }
        return absl::InvalidArgumentError(absl::StrCat("read standard input: ", std::strerror(errno)));
      }
      if (got > 0 || first) {
        std::unique_ptr<pb::Message> later;
        pb::Message* message = request;
        if (!first) {
          later = contract_.NewMessage(method_->input_type());
          message = later.get();
        }
        message->GetReflection()->SetString(message, field, buffer.substr(0, static_cast<size_t>(got)));
        first = false;
        if (!call->Write(*message)) {
          return absl::OkStatus();  // Finish says why.
        }
      }
      if (got == 0) {
        call->WritesDone();
        return absl::OkStatus();
      }
    }
  }

  // One message of a stream. False: nobody reads.
  bool PrintPiece(const pb::Message& response, Table* table) {
    if (global_.format() == OutputFormat::kJson) {
      return Print(JsonText(ToJson(response), /*one_line=*/true));
    }
    if (global_.format() == OutputFormat::kYaml) {
      return Print("---\n" + YamlText(ToJson(response)));
    }
    if (!cli_.output_field().empty()) {
      return Print(StringField(response, cli_.output_field()));
    }
    table->Add(response);
    return Print(table->Take());
  }

  int PrintAnswer(const pb::Message& request, const pb::Message& response) {
    if (global_.format() != OutputFormat::kTable) {
      const pb::FieldDescriptor* answer = AnswerField(method_);
      const nlohmann::ordered_json json = answer != nullptr ? ToJson(response, answer) : ToJson(response);
      const bool printed = Print(global_.format() == OutputFormat::kJson ? JsonText(json, /*one_line=*/false) : YamlText(json));
      if (answer != nullptr) {
        PrintError(RestOf(response, answer));
      }
      return !printed ? kExitCallFailed : cli_.has_process() ? ProcessExit(response) : kExitOk;
    }
    if (cli_.has_process()) {
      return PrintProcess(response);
    }
    if (method_->output_type()->field_count() == 0) {
      return Print(Done(request)) ? kExitOk : kExitCallFailed;
    }
    const pb::FieldDescriptor* list = AnswerField(method_) != nullptr ? AnswerField(method_) : method_->output_type()->field(0);
    if (!list->is_repeated() || list->is_map() || list->message_type() == nullptr) {
      return Print(DetailText(response)) ? kExitOk : kExitCallFailed;
    }
    Table table(list->message_type());
    for (int i = 0; i < response.GetReflection()->FieldSize(response, list); ++i) {
      table.Add(response.GetReflection()->GetRepeatedMessage(response, list, i));
    }
    const bool printed = Print(table.Take());
    PrintError(RestOf(response, list));
    return printed ? kExitOk : kExitCallFailed;
  }

  // What a list's message says beside the list; empty if nothing.
  std::string RestOf(const pb::Message& response, const pb::FieldDescriptor* list) {
    const std::unique_ptr<pb::Message> rest(response.New());
    rest->CopyFrom(response);
    rest->GetReflection()->ClearField(rest.get(), list);
    std::vector<const pb::FieldDescriptor*> set;
    rest->GetReflection()->ListFields(*rest, &set);
    return set.empty() ? "" : DetailText(*rest);
  }

  // Empty where the message has no such field.
  static std::string StringField(const pb::Message& message, const std::string& name) {
    const pb::FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
    if (field == nullptr || field->cpp_type() != pb::FieldDescriptor::CPPTYPE_STRING || field->is_repeated()) {
      return "";
    }
    return message.GetReflection()->GetString(message, field);
  }

  static std::string Either(const pb::Message& message, const std::string& raw, const std::string& text) {
    std::string bytes = StringField(message, raw);
    return bytes.empty() ? StringField(message, text) : bytes;
  }

  int PrintProcess(const pb::Message& response) {
    const v1::ProcessOutcome& process = cli_.process();
    bool printed = Print(Either(response, process.stdout_raw(), process.stdout()));
    PrintError(Either(response, process.stderr_raw(), process.stderr()));
    const pb::FieldDescriptor* result = response.GetDescriptor()->FindFieldByName(process.result());
    if (result != nullptr && response.GetReflection()->HasField(response, result)) {
      printed = Print(StringField(response, process.result()) + "\n") && printed;
    }
    if (const std::string error = StringField(response, process.error()); !error.empty()) {
      PrintError(absl::StrCat(Printable(error, /*multi_line=*/true), "\n"));
    }
    return printed ? ProcessExit(response) : kExitCallFailed;
  }

  static int ExitStatus(int64_t exit_code, bool failed) {
    if (exit_code < 0) {
      return static_cast<int>(128 + std::min<int64_t>(-exit_code, 127));
    }
    return exit_code == 0 && failed ? kExitCallFailed : static_cast<int>(std::min<int64_t>(exit_code, 255));
  }

  int ProcessExit(const pb::Message& response) const {
    const pb::FieldDescriptor* field = response.GetDescriptor()->FindFieldByName(cli_.process().exit_code());
    const int64_t code = field == nullptr ? 0 : response.GetReflection()->GetInt32(response, field);
    return ExitStatus(code, !StringField(response, cli_.process().error()).empty());
  }

  // "deleted {id}" with the request's fields.
  std::string Done(const pb::Message& request) const {
    std::string text = cli_.done().empty() ? "done" : cli_.done();
    for (int i = 0; i < request.GetDescriptor()->field_count(); ++i) {
      const pb::FieldDescriptor* field = request.GetDescriptor()->field(i);
      const std::string place = absl::StrCat("{", field->name(), "}");
      if (absl::StrContains(text, place)) {
        text = absl::StrReplaceAll(text, {{place, CellText(request, field)}});
      }
    }
    return text + "\n";
  }

  int RunInteractive(const pb::Message& request) {
    v1::ExecRequest exec;
    // The same type, once by descriptor and once generated.
    if (!exec.ParseFromString(request.SerializeAsString())) {
      return Usage("the request does not fit this forkctl");
    }
    if (!exec.stdin().empty()) {
      return Usage("--stdin and -i or -t exclude each other");
    }
    if (exec.has_max_output_bytes()) {
      return Usage("--max-output-bytes has no meaning with -i or -t: output is streamed");
    }
    if (tty_ && ::isatty(streams_.in) == 0) {
      return Usage("-t needs a terminal on standard input; leave it out to pipe");
    }
    v1::ExecStart start;
    start.set_id(exec.id());
    *start.mutable_args() = exec.args();
    *start.mutable_env() = exec.env();
    start.set_cwd(exec.cwd());
    start.set_user(exec.user());
    start.set_tty(tty_);
    if (exec.has_timeout_secs()) {
      start.set_timeout_secs(exec.timeout_secs());
    }
    const TerminalOutcome outcome = RunTerminalExecBlocking(
        global_.address, start, interactive_ ? StandardInput::kConnected : StandardInput::kClosed, streams_);
    if (outcome.signal != 0) {
      return 128 + outcome.signal;
    }
    if (!outcome.status.ok()) {
      PrintError(FailureText(outcome.status, method_->input_type(), global_.address));
      return kExitCallFailed;
    }
    const v1::ExecExit& exit = outcome.exit;
    if (!exit.error().empty()) {
      PrintError(absl::StrCat(Printable(exit.error(), /*multi_line=*/true), "\n"));
    }
    return ExitStatus(exit.exit_code(), !exit.error().empty());
  }

  const Contract& contract_;
  const pb::MethodDescriptor* const method_;
  const v1::CliCommand& cli_;
  const StandardStreams streams_;
  CLI::App app_;
  FieldFlags flags_;
  GlobalFlags global_;
  bool interactive_ = false;
  bool tty_ = false;
  bool silent_ = false;
  int64_t progress_seconds_ = 0;
};

constexpr char kBashCompletion[] = R"(# source <(forkctl completion bash)
_forkctl() {
  local IFS=$'\n'
  COMPREPLY=($(forkctl __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _forkctl forkctl
)";

// Prints what may stand in place of the last of `words`, one a line.
int Complete(const Contract& contract, const CommandNode& root, std::vector<std::string> words, const StandardStreams& streams) {
  const std::string begun = words.empty() ? "" : words.back();
  if (!words.empty()) {
    words.pop_back();
  }
  const CommandMatch match = FindCommand(root, words, ValuedGlobalFlags());
  std::string candidates;
  if (match.unknown_word.empty() && absl::StartsWith(begun, "-")) {
    if (match.node->method != nullptr) {
      for (const std::string& flag : Command(contract, *match.node, streams).LongFlags()) {
        absl::StrAppend(&candidates, absl::StartsWith(flag, begun) ? flag + "\n" : "");
      }
    }
  } else if (match.unknown_word.empty() && match.arguments.empty()) {
    for (const auto& [word, child] : match.node->children) {
      absl::StrAppend(&candidates, absl::StartsWith(word, begun) ? word + "\n" : "");
    }
  }
  return WriteAllBlocking(streams.out, candidates) ? kExitOk : kExitCallFailed;
}

bool AsksForHelp(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (argument == "--") {
      return false;
    }
    if (argument == "-h" || argument == "--help") {
      return true;
    }
  }
  return false;
}

}  // namespace

int RunForkctl(const pb::FileDescriptorSet& set, const std::vector<std::string>& given, const StandardStreams& streams) {
  const auto contract = Contract::Load(set);
  if (!contract.ok()) {
    WriteAllBlocking(streams.err, absl::StrCat("forkctl: ", contract.status().message(), "\n"));
    return kExitCallFailed;
  }
  const auto root = BuildCommandTree(**contract);
  if (!root.ok()) {
    WriteAllBlocking(streams.err, absl::StrCat("forkctl: ", root.status().message(), "\n"));
    return kExitCallFailed;
  }
  std::vector<std::string> arguments = given;
  if (!arguments.empty() && arguments[0] == "__complete") {
    arguments.erase(arguments.begin());
    if (!arguments.empty() && arguments[0] == "--") {
      arguments.erase(arguments.begin());
    }
    return Complete(**contract, **root, std::move(arguments), streams);
  }
  if (!arguments.empty() && arguments[0] == "help") {
    arguments.erase(arguments.begin());
    arguments.push_back("--help");
  }
  if (arguments.size() == 1 && arguments[0] == "--version") {
    arguments[0] = "version";
  }

  const CommandMatch match = FindCommand(**root, arguments, ValuedGlobalFlags());
  const CommandNode& node = *match.node;
  if (!match.unknown_word.empty()) {
    const std::vector<std::string> near = Suggestions(node, match.unknown_word);
    WriteAllBlocking(streams.err,
                     absl::StrCat("forkctl: \"", Printable(absl::StrCat(node.path, node.path.empty() ? "" : " ", match.unknown_word), false),
                                  "\" is no command",
                                  near.empty() ? "" : absl::StrCat("; did you mean ", absl::StrJoin(near, " or "), "?"), "\n`forkctl ",
                                  node.path, node.path.empty() ? "" : " ", "--help` shows the commands\n"));
    return kExitUsage;
  }
  if (!node.IsCommand()) {
    const bool help = AsksForHelp(match.arguments);
    WriteAllBlocking(help ? streams.out : streams.err, GroupHelp(node));
    return help ? kExitOk : kExitUsage;
  }
  if (node.method == nullptr) {
    const std::string text = AsksForHelp(match.arguments) ? absl::StrCat(node.own_summary, "\n")
                             : node.path == "version"     ? absl::StrCat("forkctl ", kVersion, "\n")
                                                          : std::string(kBashCompletion);
    return WriteAllBlocking(streams.out, text) ? kExitOk : kExitCallFailed;
  }
  return Command(**contract, node, streams).Run(match.arguments);
}

}  // namespace forkd::cli
