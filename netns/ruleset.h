// An egress policy as text for nftables. Pure, so that golden files show every wall.
//
// Inside a sandbox's namespace stand two tables, both replaced in one transaction:
//   netdev forkd_guest — ingress of the tap, before any other code sees a packet: source MAC, source address, ARP's claims; IPv6, VLANs and
//                        whatever else is not IPv4 or ARP; and under `deny` everything but ARP.
//   ip forkd           — forward, input, output: the policy, for packets of open connections as for first ones, in both directions.
// On the host one table per instance (ip forkd_<instance>): nothing from a sandbox to the host itself or to another sandbox, and masquerade.
#ifndef FORKD_NETNS_RULESET_H_
#define FORKD_NETNS_RULESET_H_

#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "netns/egress_policy.h"

namespace forkd::netns {

struct MacAddress {
  std::array<std::uint8_t, 6> bytes{};
  std::string ToString() const;  // "02:fd:00:00:00:01"
  friend bool operator==(const MacAddress&, const MacAddress&) = default;
};

// The same inside every namespace.
inline constexpr absl::string_view kTapName = "forkd0";
inline constexpr absl::string_view kUplinkName = "uplink0";
inline constexpr std::uint32_t kGatewayAddress = 0x0a2a0001;  // 10.42.0.1
inline constexpr std::uint32_t kGuestAddress = 0x0a2a0002;    // 10.42.0.2
inline constexpr int kGuestPrefixLength = 24;

// The tables of one sandbox. `guest_mac` is the only source that the tap accepts. `host_uplink` is the host's end of the veth pair: closed
// like every address of the host, unless a rule names it.
std::string SandboxRuleset(const EgressPolicy& policy, const MacAddress& guest_mac);

// The host's table of one instance. `uplink_prefix` begins the name of every host end of a veth pair, `range` holds all their /30.
std::string HostRuleset(absl::string_view instance, absl::string_view uplink_prefix, const Cidr& range);
// Removes it; no error if it is absent.
std::string HostRulesetRemoval(absl::string_view instance);

}  // namespace forkd::netns

#endif  // FORKD_NETNS_RULESET_H_
