// forkctl, as a function: a command line in, an exit status out.
#ifndef FORKD_CLI_FORKCTL_H_
#define FORKD_CLI_FORKCTL_H_

#include <string>
#include <vector>

#include <google/protobuf/descriptor.pb.h>

#include "cli/standard_streams.h"

namespace forkd::cli {

inline constexpr char kVersion[] = "0.1.0";
inline constexpr char kDefaultAddress[] = "127.0.0.1:8890";

// Exit statuses. `exec` and `eval` pass on the program's own.
inline constexpr int kExitOk = 0;
inline constexpr int kExitCallFailed = 1;
inline constexpr int kExitUsage = 2;

// Runs one command. `arguments` are without the program's name; FORKD_ADDRESS is read from the environment. Blocking.
int RunForkctl(const google::protobuf::FileDescriptorSet& contract, const std::vector<std::string>& arguments, const StandardStreams& streams);

}  // namespace forkd::cli

#endif  // FORKD_CLI_FORKCTL_H_
