// Uids for VMM processes: each live one has its own, so that none may signal, trace or open another.
#ifndef FORKD_VMM_LAUNCHER_UID_POOL_H_
#define FORKD_VMM_LAUNCHER_UID_POOL_H_

#include <sys/types.h>

#include <memory>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace forkd::vmm {

// A range that nothing else on the host uses. The default lies above the container ranges of systemd's UIDS-GIDS document and below 2^31.
struct UidRange {
  uid_t first = 0x70000000;
  uid_t count = 65536;
};

class UidPool;

// Gives its uid back when destroyed; hold it for as long as the process may live. May outlive the pool.
class UidLease {
 public:
  UidLease() = default;
  UidLease(UidLease&& other) noexcept;
  UidLease& operator=(UidLease&& other) noexcept;
  ~UidLease() { Release(); }
  uid_t uid() const { return uid_; }

 private:
  friend class UidPool;
  struct State;
  UidLease(std::shared_ptr<State> state, uid_t uid) : state_(std::move(state)), uid_(uid) {}
  void Release();
  std::shared_ptr<State> state_;
  uid_t uid_ = 0;
};

// Thread-safe. Uids are handed out in turn, so that one is used again as late as possible.
class UidPool {
 public:
  explicit UidPool(UidRange range);
  ~UidPool();
  // RESOURCE_EXHAUSTED LIMIT_REACHED when every uid of the range is in use.
  absl::StatusOr<UidLease> Lease();
  // Takes up the uid of a process that an earlier daemon started. An empty lease for a uid outside the range.
  UidLease Adopt(uid_t uid);

 private:
  std::shared_ptr<UidLease::State> state_;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_LAUNCHER_UID_POOL_H_
