// Whether the host's memory can carry one thing more. Memory is reserved before any side effect, and atomically: what does not fit is refused
// with RESOURCE_EXHAUSTED (MEMORY_EXHAUSTED) and a retry delay, rather than let the host thrash.
#ifndef FORKD_ENGINE_ADMISSION_H_
#define FORKD_ENGINE_ADMISSION_H_

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::engine {

// Gives its memory back when destroyed. May outlive the Admission.
class MemoryReservation {
 public:
  MemoryReservation() = default;
  MemoryReservation(MemoryReservation&& other) noexcept = default;
  MemoryReservation& operator=(MemoryReservation&& other) noexcept;
  ~MemoryReservation() { Release(); }
  int64_t mib() const { return mib_; }
  void Release();

 private:
  friend class Admission;
  MemoryReservation(std::shared_ptr<int64_t> reserved_mib, int64_t mib) : reserved_mib_(std::move(reserved_mib)), mib_(mib) {}
  std::shared_ptr<int64_t> reserved_mib_;
  int64_t mib_ = 0;
};

// I/O thread only.
class Admission {
 public:
  // `budget_mib`: the most that reservations may add up to. `available_mib` answers what the host could give now (MemAvailable); a
  // reservation must leave kHostReserveMib of it.
  Admission(int64_t budget_mib, absl::AnyInvocable<int64_t()> available_mib);

  static constexpr int64_t kHostReserveMib = 256;

  // `what` is for the message: "1 sandbox of \"py312\"".
  absl::StatusOr<MemoryReservation> Reserve(int64_t mib, absl::string_view what);
  // Counts what is there already (a re-adopted sandbox): never refused.
  MemoryReservation Account(int64_t mib);

  int64_t reserved_mib() const { return *reserved_mib_; }
  int64_t budget_mib() const { return budget_mib_; }

 private:
  const int64_t budget_mib_;
  absl::AnyInvocable<int64_t()> available_mib_;
  std::shared_ptr<int64_t> reserved_mib_ = std::make_shared<int64_t>(0);
};

// What a running child may take for itself, in MiB: the VMM's own memory and a share of the guest's that is likely to diverge. An estimate on
// purpose: children share their root, and a budget for the worst case would leave most of the host idle. `memory_limit_mib` of 0 is none.
int64_t SandboxEstimateMib(int64_t guest_memory_mib, int64_t memory_limit_mib);

// MemAvailable and MemTotal of /proc/meminfo, in MiB; 0 if unreadable.
int64_t HostAvailableMib();
int64_t HostTotalMib();

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_ADMISSION_H_
