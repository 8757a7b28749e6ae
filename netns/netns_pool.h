// Network namespaces for sandboxes, made ahead and leased.
//
// Each is called `forkd-child-K` (K from 1, the smallest free one) and stands as a bind mount in /run/netns, where `ip netns` sees it. Inside:
// lo down, IPv6 off, forwarding off, a persistent tap `forkd0` with 10.42.0.1/24, and the tables of `deny` — before a guest can send anything.
// A namespace is used by one sandbox and then removed; the pool makes fresh ones.
//
// All calls block (0.3 to a few ms) and may run on any thread, several at a time; none ever moves the calling thread to another namespace.
// Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
#ifndef FORKD_NETNS_NETNS_POOL_H_
#define FORKD_NETNS_NETNS_POOL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"
#include "netns/egress_policy.h"
#include "netns/ruleset.h"

namespace forkd::netns {

struct PoolOptions {
  // 1 to 32 characters of [a-z0-9]: keeps two daemons on one host apart. Part of the host's table name.
  std::string instance;
  // Where this instance notes which namespaces are its own; made at need, 0700. On a file system that a reboot empties, as /run is.
  std::string marker_dir;
  std::string netns_dir = "/run/netns";
  // Ready namespaces that Fill() aims at, and the bound on all that are ready or leased.
  int target_ready = 8;
  int max_total = 1024;
  // The /30 networks between the host and sandboxes that have an uplink: the K-th for forkd-child-K.
  std::string uplink_range = "10.200.0.0/16";
  // An uplink needs net.ipv4.ip_forward on the host. True: the first uplink switches it on; false: FAILED_PRECONDITION if it is off.
  bool enable_host_forwarding = true;
};

// What the walls stopped, and what they let through, since the lease began (also over changes of the policy).
struct EgressCounters {
  std::int64_t blocked_packets = 0;  // by the policy
  std::int64_t blocked_bytes = 0;
  std::int64_t spoofed_packets = 0;  // a source MAC or address, or ARP, that is not the guest's own; IPv6 and other frames
  std::int64_t spoofed_bytes = 0;
  std::int64_t passed_packets = 0;  // sent through the uplink
  std::int64_t passed_bytes = 0;
};

class NetnsPool;

// One namespace, for one sandbox. Move-only; stays valid when the pool goes first. The destructor hands the namespace to the pool's next
// Reap() and neither waits nor fails.
class NetnsLease {
 public:
  NetnsLease();
  NetnsLease(NetnsLease&&) noexcept;
  NetnsLease& operator=(NetnsLease&&) noexcept;
  NetnsLease(const NetnsLease&) = delete;
  NetnsLease& operator=(const NetnsLease&) = delete;
  ~NetnsLease();

  bool valid() const { return impl_ != nullptr; }
  const std::string& name() const;  // "forkd-child-7"
  int index() const;                // 7
  // The address that the guest must use: locally administered, different for every K.
  MacAddress guest_mac() const;
  EgressPolicy policy() const;

  // The tap as the VMM gets it: non-blocking, close-on-exec, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR. Once per lease: FAILED_PRECONDITION after
  // that, and for an adopted lease, whose VMM has it.
  absl::StatusOr<UniqueFd> TakeTap();
  // The namespace itself, for a VMM that is to live in it (setns).
  absl::StatusOr<UniqueFd> OpenNamespace() const;

  // Puts the policy in place of the present one: one transaction, so that no packet meets neither or both. Leaving `deny` makes the uplink
  // first, going back to it removes the uplink. On an error the old rules stand, or the namespace has no uplink: never an opening.
  absl::Status ApplyPolicyBlocking(const EgressPolicy& policy);
  absl::StatusOr<EgressCounters> ReadCountersBlocking() const;

  // Removes the namespace with all that is in it. Idempotent. The VMM must be gone for the kernel to free it; this never waits for that.
  absl::Status ReturnBlocking();
  // Gives the namespace up without touching it: its sandbox outlives this daemon.
  void Keep();

 private:
  friend class NetnsPool;
  struct Impl;
  explicit NetnsLease(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class NetnsPool {
 public:
  // Checks options and the host: FAILED_PRECONDITION HOST_MISSING names the feature that is absent (network namespaces, /dev/net/tun,
  // nftables) by having made and removed one of each. INVALID_ARGUMENT names the option.
  static absl::StatusOr<std::unique_ptr<NetnsPool>> OpenBlocking(PoolOptions options);
  // Ready namespaces are removed; leased ones stay.
  ~NetnsPool();
  NetnsPool(const NetnsPool&) = delete;
  NetnsPool& operator=(const NetnsPool&) = delete;

  // A ready namespace, or a new one if none is ready. RESOURCE_EXHAUSTED LIMIT_REACHED at max_total.
  absl::StatusOr<NetnsLease> LeaseBlocking();
  // The namespace of a sandbox that an earlier daemon left running. NOT_FOUND if it is not there, or not of this instance. `policy`: what
  // stands in it, from the registry; the rules are written again.
  absl::StatusOr<NetnsLease> AdoptBlocking(absl::string_view name, const EgressPolicy& policy);
  // Makes namespaces until target_ready stand by, and removes what was given back; call it off the path of requests.
  absl::Status FillBlocking();
  // After a crash: removes this instance's namespaces that are neither in `keep` (names) nor leased nor ready. Others' are left alone. Also
  // what a crash left half made. Goes on after a failure and gives the first.
  absl::Status SweepBlocking(const std::vector<std::string>& keep);

  int ready_count() const;
  int leased_count() const;

 private:
  friend class NetnsLease;
  struct State;
  explicit NetnsPool(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace forkd::netns

#endif  // FORKD_NETNS_NETNS_POOL_H_
