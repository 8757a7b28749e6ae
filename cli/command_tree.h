// The words of forkctl's commands, as the contract's options name them.
#ifndef FORKD_CLI_COMMAND_TREE_H_
#define FORKD_CLI_COMMAND_TREE_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/contract.h"

namespace forkd::cli {

// A word of the command line: a group of further words, a command, or both ("host", "host info").
struct CommandNode {
  std::string path;  // "sandbox create"; empty for the root.
  // Ordered by word.
  std::map<std::string, std::unique_ptr<CommandNode>> children;
  // Null for a mere group and for what `own_summary` describes.
  const google::protobuf::MethodDescriptor* method = nullptr;
  // For commands that forkctl has without the contract: "version".
  std::string own_summary;
  // This path is a shortcut of that command.
  std::string shortcut_of;

  bool IsCommand() const { return method != nullptr || !own_summary.empty(); }
};

// INTERNAL if two methods claim the same command.
absl::StatusOr<std::unique_ptr<CommandNode>> BuildCommandTree(const Contract& contract);

// Where the words of a command line lead.
struct CommandMatch {
  const CommandNode* node = nullptr;
  // Global flags before or between the words, then everything after the last word: what the command itself parses.
  std::vector<std::string> arguments;
  // A word that the node does not have; empty if all were found.
  std::string unknown_word;
};

// `valued_flags` are the global flags that take the next argument as their value ("-o", "--address").
CommandMatch FindCommand(const CommandNode& root, const std::vector<std::string>& arguments, const std::vector<std::string>& valued_flags);

// Words of the node close to `word`, best first, at most three.
std::vector<std::string> Suggestions(const CommandNode& node, absl::string_view word);

// Help of a group: its commands and groups with a line each.
std::string GroupHelp(const CommandNode& node);

}  // namespace forkd::cli

#endif  // FORKD_CLI_COMMAND_TREE_H_
