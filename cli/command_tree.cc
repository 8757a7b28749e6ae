#include "cli/command_tree.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace forkd::cli {
namespace pb = google::protobuf;
namespace {

CommandNode* Walk(CommandNode* node, const std::string& path) {
  for (const absl::string_view word : absl::StrSplit(path, ' ', absl::SkipEmpty())) {
    std::unique_ptr<CommandNode>& child = node->children[std::string(word)];
    if (child == nullptr) {
      child = std::make_unique<CommandNode>();
      child->path = absl::StrCat(node->path, node->path.empty() ? "" : " ", word);
    }
    node = child.get();
  }
  return node;
}

absl::Status Claim(CommandNode* root, const std::string& path, const pb::MethodDescriptor* method, const std::string& shortcut_of) {
  CommandNode* node = Walk(root, path);
  if (node == root || node->IsCommand()) {
    return Error(absl::StatusCode::kInternal, Reason::kInternal,
                 absl::StrCat("command \"", path, "\" of ", method->full_name(), " is taken or empty"));
  }
  node->method = method;
  node->shortcut_of = shortcut_of;
  return absl::OkStatus();
}

// "SandboxService.PingSandbox" → "sandbox ping-sandbox", for methods whose options name no command.
std::string DefaultCommand(const pb::MethodDescriptor* method) {
  std::string service = method->service()->name();
  if (absl::EndsWith(service, "Service") && service.size() > 7) {
    service.resize(service.size() - 7);
  }
  return absl::StrCat(Kebab(service), " ", Kebab(method->name()));
}

// Levenshtein's distance; words are short.
size_t Distance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) {
    row[j] = j;
  }
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string NodeSummary(const CommandNode& node) {
  if (!node.shortcut_of.empty()) {
    return absl::StrCat("Short for `", node.shortcut_of, "`.");
  }
  if (node.method != nullptr) {
    return std::string(Summary(CommentOf(node.method)));
  }
  if (!node.own_summary.empty()) {
    return node.own_summary;
  }
  std::vector<std::string> words;
  for (const auto& [word, child] : node.children) {
    if (child->shortcut_of.empty()) {
      words.push_back(word);
    }
  }
  return absl::StrCat("Commands: ", absl::StrJoin(words, ", "), ".");
}

void AppendSection(const char* title, const std::vector<std::pair<std::string, std::string>>& lines, std::string* text) {
  if (lines.empty()) {
    return;
  }
  size_t width = 0;
  for (const auto& [word, summary] : lines) {
    width = std::max(width, word.size());
  }
  absl::StrAppend(text, "\n", title, ":\n");
  for (const auto& [word, summary] : lines) {
    absl::StrAppendFormat(text, "  %-*s  %s\n", static_cast<int>(width), word, summary);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CommandNode>> BuildCommandTree(const Contract& contract) {
  auto root = std::make_unique<CommandNode>();
  for (const pb::MethodDescriptor* method : contract.methods()) {
    const v1::CliCommand& cli = OptionsOf(method).cli();
    if (cli.by_hand()) {
      continue;
    }
    const std::string command = cli.command().empty() ? DefaultCommand(method) : cli.command();
    FORKD_RETURN_IF_ERROR(Claim(root.get(), command, method, ""));
    for (const std::string& shortcut : cli.shortcuts()) {
      FORKD_RETURN_IF_ERROR(Claim(root.get(), shortcut, method, command));
    }
  }
  const std::pair<const char*, const char*> own[] = {
      {"version", "Prints forkctl's own version."},
      {"completion bash", "Prints what bash needs to complete forkctl: `source <(forkctl completion bash)`."},
  };
  for (const auto& [path, summary] : own) {
    CommandNode* node = Walk(root.get(), path);
    if (!node->IsCommand()) {
      node->own_summary = summary;
    }
  }
  return root;
}

CommandMatch FindCommand(const CommandNode& root, const std::vector<std::string>& arguments, const std::vector<std::string>& valued_flags) {
  CommandMatch match;
  match.node = &root;
  size_t i = 0;
  for (; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      break;
    }
    if (absl::StartsWith(argument, "-")) {
      match.arguments.push_back(argument);
      if (std::find(valued_flags.begin(), valued_flags.end(), argument) != valued_flags.end() && i + 1 < arguments.size()) {
        match.arguments.push_back(arguments[++i]);
      }
      if (match.node->IsCommand()) {
        // A flag of the command itself may take a value, which is no word of ours.
        ++i;
        break;
      }
      continue;
    }
    const auto child = match.node->children.find(argument);
    if (child == match.node->children.end()) {
      if (!match.node->IsCommand()) {
        match.unknown_word = argument;
      }
      break;
    }
    match.node = child->second.get();
  }
  match.arguments.insert(match.arguments.end(), arguments.begin() + static_cast<std::ptrdiff_t>(i), arguments.end());
  return match;
}

std::vector<std::string> Suggestions(const CommandNode& node, absl::string_view word) {
  std::vector<std::pair<size_t, std::string>> near;
  for (const auto& [name, child] : node.children) {
    const size_t distance = Distance(word, name);
    const bool prefix = !word.empty() && (absl::StartsWith(name, word) || absl::StartsWith(word, name));
    if (prefix || distance <= std::max<size_t>(1, std::max(word.size(), name.size()) / 3)) {
      near.emplace_back(prefix ? 0 : distance, name);
    }
  }
  std::sort(near.begin(), near.end());
  std::vector<std::string> names;
  for (size_t i = 0; i < near.size() && i < 3; ++i) {
    names.push_back(near[i].second);
  }
  return names;
}

std::string GroupHelp(const CommandNode& node) {
  std::string text = node.path.empty() ? "forkctl: drives forkd-controller, which forks microVMs\n" : "";
  absl::StrAppend(&text, "Usage: forkctl ", node.path, node.path.empty() ? "" : " ", "COMMAND [ARGUMENTS]\n");
  std::vector<std::pair<std::string, std::string>> groups;
  std::vector<std::pair<std::string, std::string>> commands;
  std::vector<std::pair<std::string, std::string>> shortcuts;
  for (const auto& [word, child] : node.children) {
    auto& section = !child->IsCommand() ? groups : child->shortcut_of.empty() ? commands : shortcuts;
    section.emplace_back(word, NodeSummary(*child));
  }
  AppendSection("Groups", groups, &text);
  AppendSection("Commands", commands, &text);
  AppendSection("Shortcuts", shortcuts, &text);
  absl::StrAppend(&text, "\n`forkctl", node.path.empty() ? "" : " ", node.path, " COMMAND --help` says more.\n");
  if (node.path.empty()) {
    absl::StrAppend(&text, "Exit status: 0 done, 1 the call failed, 2 wrong usage; exec and eval exit as the program did.\n");
  }
  return text;
}

}  // namespace forkd::cli
