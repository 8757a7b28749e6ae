// What a sandbox may send, and to whom. Outside text becomes these types once, here.
#ifndef FORKD_NETNS_EGRESS_POLICY_H_
#define FORKD_NETNS_EGRESS_POLICY_H_

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::netns {

// An IPv4 network. `address` is in host byte order and has no bit set beyond the prefix.
struct Cidr {
  std::uint32_t address = 0;
  int prefix_length = 0;  // 0 to 32

  bool Contains(const Cidr& other) const;
  std::string ToString() const;
  auto operator<=>(const Cidr&) const = default;
};

// "10.1.2.0/24", or an address alone (/32). Host bits must be zero: "10.1.2.3/24" has two readings. INVALID_ARGUMENT INVALID_FIELD names
// `field`; IPv6 is refused, since sandboxes have none.
absl::StatusOr<Cidr> ParseCidr(absl::string_view text, absl::string_view field);

struct PortRange {
  std::uint16_t first = 0;
  std::uint16_t last = 0;  // inclusive
  auto operator<=>(const PortRange&) const = default;
};

// "443" or "8000-8100"; 1 to 65535.
absl::StatusOr<PortRange> ParsePortRange(absl::string_view text, absl::string_view field);

enum class Protocol { kAny, kTcp, kUdp, kIcmp };

struct EgressRule {
  Cidr destination;
  Protocol protocol = Protocol::kAny;
  // Empty: all. Only with kTcp and kUdp, or kAny, where it then means both.
  std::vector<PortRange> ports;
  friend bool operator==(const EgressRule&, const EgressRule&) = default;
};

enum class EgressMode {
  kDeny,   // no uplink exists
  kAllow,  // what the rules name, nothing else
  kOpen,   // everything but the closed ranges, and of those what the rules name
};

struct EgressPolicy {
  EgressMode mode = EgressMode::kDeny;
  std::vector<EgressRule> rules;
  friend bool operator==(const EgressPolicy&, const EgressPolicy&) = default;
};

// The bounds keep one sandbox's rules from costing the host more than a page of kernel memory or a millisecond.
inline constexpr std::size_t kMaxRules = 256;
inline constexpr std::size_t kMaxPortsPerRule = 64;

// As a request carries it.
struct EgressRuleText {
  std::string cidr;
  std::string protocol;            // "", "any", "tcp", "udp", "icmp"
  std::vector<std::string> ports;  // "443", "8000-8100"
  std::string domain;              // refused for now: UNIMPLEMENTED
};
struct EgressPolicyText {
  std::string mode;  // "" and "deny", "allow", "open"
  std::vector<EgressRuleText> allow;
};

// INVALID_ARGUMENT INVALID_FIELD naming `<field>.mode`, `<field>.allow[3].cidr` and so on: unknown mode, rules under deny, allow without a
// rule, malformed or contradictory values, too many. UNIMPLEMENTED for domains.
absl::StatusOr<EgressPolicy> ParseEgressPolicy(const EgressPolicyText& text, absl::string_view field = "egress");

// Ranges that stay closed under allow and open unless a rule lies within them: "this" network, RFC 1918, shared (RFC 6598), loopback,
// link-local with cloud metadata, IETF protocol assignments, test networks, benchmarking, multicast, reserved and broadcast. A rule opens a
// closed range only if it lies inside it: 0.0.0.0/0 names the internet, not the metadata service.
const std::vector<Cidr>& ClosedRanges();

}  // namespace forkd::netns

#endif  // FORKD_NETNS_EGRESS_POLICY_H_
