// What the agent tells people: lines on stderr, which is the machine's console when it is PID 1.
#ifndef FORKD_GUEST_AGENT_CONSOLE_H_
#define FORKD_GUEST_AGENT_CONSOLE_H_

#include <string>

namespace forkd::agent {

// "forkd-agent: " + line.
void Say(const std::string& line);
// Says `what` with the text of errno, and ends: as PID 1 by a restart of the machine, which is what ends every VMM (QEMU with -no-reboot; Firecracker
// knows no other way), so that the host sees why.
[[noreturn]] void Fatal(const std::string& what);
std::string ErrnoText(int error);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_CONSOLE_H_
