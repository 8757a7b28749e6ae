#include "engine/admission.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace forkd::engine {
namespace {

// A full QEMU child's own heap, translated code and page tables: 30 MB measured under emulation (docs/architecture.md), rounded up.
constexpr int64_t kVmmOverheadMib = 40;
// One eighth of the guest's memory, at least: what a light workload writes.
constexpr int64_t kDivergedShare = 8;
constexpr int64_t kDivergedFloorMib = 16;

constexpr std::chrono::seconds kRetryAfter{2};

int64_t MeminfoMib(absl::string_view key) {
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  std::string unit;
  while (meminfo >> name >> kib) {
    std::getline(meminfo, unit);
    if (name == key) { return kib / 1024; }
  }
  return 0;
}

}  // namespace

MemoryReservation& MemoryReservation::operator=(MemoryReservation&& other) noexcept {
  if (this != &other) {
    Release();
    reserved_mib_ = std::move(other.reserved_mib_);
    mib_ = std::exchange(other.mib_, 0);
  }
  return *this;
}

void MemoryReservation::Release() {
  if (reserved_mib_ == nullptr) { return; }
  *reserved_mib_ -= mib_;
  reserved_mib_ = nullptr;
  mib_ = 0;
}

Admission::Admission(int64_t budget_mib, absl::AnyInvocable<int64_t()> available_mib)
    : budget_mib_(budget_mib), available_mib_(std::move(available_mib)) {}

absl::StatusOr<MemoryReservation> Admission::Reserve(int64_t mib, absl::string_view what) {
  const int64_t left = budget_mib_ - *reserved_mib_;
  // What is reserved but not yet touched is still in MemAvailable; the budget covers that, this covers everybody else on the host.
  const int64_t available = available_mib_() - kHostReserveMib;
  if (mib > std::min(left, available)) {
    return Error(absl::StatusCode::kResourceExhausted, Reason::kMemoryExhausted,
                 absl::StrCat(what, " needs ", mib, " MiB; ", std::max<int64_t>(left, 0), " of the budget of ", budget_mib_,
                              " MiB are free and the host has ", std::max<int64_t>(available, 0),
                              " MiB to spare: delete sandboxes, ask for fewer, or raise --memory-budget-mib"))
        .Meta("needed_mib", absl::StrCat(mib))
        .Meta("free_mib", absl::StrCat(std::max<int64_t>(std::min(left, available), 0)))
        .RetryAfter(kRetryAfter);
  }
  return Account(mib);
}

MemoryReservation Admission::Account(int64_t mib) {
  *reserved_mib_ += mib;
  return MemoryReservation(reserved_mib_, mib);
}

int64_t SandboxEstimateMib(int64_t guest_memory_mib, int64_t memory_limit_mib) {
  const int64_t estimate = kVmmOverheadMib + std::max(kDivergedFloorMib, guest_memory_mib / kDivergedShare);
  return memory_limit_mib > 0 ? std::min(estimate, memory_limit_mib) : estimate;
}

int64_t HostAvailableMib() { return MeminfoMib("MemAvailable:"); }
int64_t HostTotalMib() { return MeminfoMib("MemTotal:"); }

}  // namespace forkd::engine
