// What the agent tells people: lines on stderr, which is the machine's console when it is PID 1.
#ifndef FORKD_GUEST_AGENT_CONSOLE_H_
#define FORKD_GUEST_AGENT_CONSOLE_H_

#include <string>

namespace forkd::agent {

// "forkd-agent: " + line.
void Say(const std::string& line);
// Says `what` with the text of errno, and ends: as PID 1 by switching the machine off, so that the VMM ends and the host sees why.
[[noreturn]] void Fatal(const std::string& what);
std::string ErrnoText(int error);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_CONSOLE_H_
