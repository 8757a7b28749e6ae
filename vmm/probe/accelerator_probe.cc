#include "vmm/probe/accelerator_probe.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/mapping.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"

// The guest's program: long mode, ring 0, physical = virtual. It writes the number of each step to kStepAddress before it takes it, so that an
// exit in between tells which instruction the host cannot run, and leaves by `out` to port 0x10.
asm(R"(
  .pushsection .rodata
  .balign 16
forkd_probe_begin:
  movl $0x5000, %edi            # zeroed, 16-byte aligned
  movl $0x5100, %esi            # kStepAddress
  movl $0x5200, %ebp            # set by the int3 handler
  movl $0x6000, %r8d            # XSAVE area, 64-byte aligned

  movl $1, (%rsi)
  xorl %eax, %eax
  xorl %edx, %edx
  movl $1, %ebx
  movl $2, %ecx
  lock cmpxchg16b (%rdi)
  jne 9f
  cmpq $1, (%rdi)
  jne 9f

  movl $2, (%rsi)
  int3
  cmpl $77, (%rbp)
  jne 9f

  movl $3, (%rsi)
  xorl %edx, %edx
  movl $1, %eax
  xsave (%r8)
  xrstor (%r8)

  movl $4, (%rsi)
  movl $2000000, %ecx
1: decl %ecx
  jnz 1b

  movl $5, (%rsi)
9:
  outb %al, $0x10
  hlt
  jmp 9b

forkd_probe_int3:
  movl $77, (%rbp)
  iretq
forkd_probe_end:
  .popsection
)");

extern "C" const char forkd_probe_begin[];
extern "C" const char forkd_probe_int3[];
extern "C" const char forkd_probe_end[];

namespace forkd::vmm {
namespace {

constexpr std::size_t kMemoryBytes = 64 * 1024;
constexpr uint64_t kPml4 = 0x1000;
constexpr uint64_t kPdpt = 0x2000;
constexpr uint64_t kPageDirectory = 0x3000;
constexpr uint64_t kGdt = 0x4000;
constexpr uint64_t kIdt = 0x4800;
constexpr uint64_t kStepAddress = 0x5100;
constexpr uint64_t kCode = 0x8000;
constexpr uint64_t kStackTop = 0xf000;
constexpr uint32_t kAllSteps = 5;
// 2,000,000 turns take about 1 ms natively; an emulating host takes seconds.
constexpr int64_t kRunLimitMs = 300;

const char* StepName(uint32_t step) {
  switch (step) {
    case 1: return "cmpxchg16b";
    case 2: return "int3";
    case 3: return "xsave/xrstor";
    case 4: return "a loop of 2,000,000 turns";
    default: return "the first instruction";
  }
}

// linux/kvm.h's own structs with a flexible array are larger in C++ than in C (__DECLARE_FLEX_ARRAY has an empty struct), and their size is
// part of the ioctl's number.
constexpr uint32_t kMaxCpuidEntries = 256;
struct CpuidTable {
  uint32_t count;
  uint32_t padding;
  kvm_cpuid_entry2 entries[kMaxCpuidEntries];
};
struct SignalMask {
  uint32_t length;  // 8: the kernel's sigset
  uint8_t signals[8];
};
constexpr unsigned long kGetSupportedCpuid = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, 8);
constexpr unsigned long kSetCpuid2 = _IOC(_IOC_WRITE, KVMIO, 0x90, 8);
constexpr unsigned long kSetSignalMask = _IOC(_IOC_WRITE, KVMIO, 0x8b, 4);

absl::Status KvmError(absl::string_view what) { return ErrnoError(errno, what); }

// A page-directory entry of 2 MiB, and the long-mode descriptors.
constexpr uint64_t kCodeDescriptor = 0x00af9b000000ffff;
constexpr uint64_t kDataDescriptor = 0x00cf93000000ffff;

void Put64(char* memory, uint64_t address, uint64_t value) { std::memcpy(memory + address, &value, sizeof(value)); }

void LayOutMemory(char* memory) {
  Put64(memory, kPml4, kPdpt | 3);
  Put64(memory, kPdpt, kPageDirectory | 3);
  Put64(memory, kPageDirectory, 0x83);  // present, writable, 2 MiB
  Put64(memory, kGdt + 8, kCodeDescriptor);
  Put64(memory, kGdt + 16, kDataDescriptor);
  const std::size_t code_bytes = static_cast<std::size_t>(forkd_probe_end - forkd_probe_begin);
  std::memcpy(memory + kCode, forkd_probe_begin, code_bytes);
  // Interrupt gate 3: selector 8, present, 64-bit.
  const uint64_t handler = kCode + static_cast<uint64_t>(forkd_probe_int3 - forkd_probe_begin);
  Put64(memory, kIdt + 3 * 16, (handler & 0xffff) | (8ull << 16) | (0x8eull << 40) | ((handler & 0xffff0000) << 32));
  Put64(memory, kIdt + 3 * 16 + 8, handler >> 32);
}

kvm_segment Segment(uint16_t selector, uint8_t type, uint8_t long_mode) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.l = long_mode;
  segment.db = long_mode != 0 ? 0 : 1;
  segment.g = 1;
  return segment;
}

absl::Status SetUpCpu(int kvm, int vcpu) {
  // The whole of the host's CPUID: long mode and XSAVE must be among it.
  auto cpuid = std::make_unique<CpuidTable>();
  cpuid->count = kMaxCpuidEntries;
  if (::ioctl(kvm, kGetSupportedCpuid, cpuid.get()) != 0) { return KvmError("KVM_GET_SUPPORTED_CPUID"); }
  if (::ioctl(vcpu, kSetCpuid2, cpuid.get()) != 0) { return KvmError("KVM_SET_CPUID2"); }
  kvm_sregs system{};
  if (::ioctl(vcpu, KVM_GET_SREGS, &system) != 0) { return KvmError("KVM_GET_SREGS"); }
  system.cs = Segment(8, 11, 1);
  system.ds = system.es = system.fs = system.gs = system.ss = Segment(16, 3, 0);
  system.gdt = {.base = kGdt, .limit = 23, .padding = {}};
  system.idt = {.base = kIdt, .limit = 4 * 16 - 1, .padding = {}};
  system.cr3 = kPml4;
  system.cr4 = (1 << 5) | (1 << 9) | (1 << 10) | (1 << 18);  // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
  system.cr0 = 0x80000033;                                   // PG, NE, ET, MP, PE
  system.efer = (1 << 8) | (1 << 10);                        // LME, LMA
  if (::ioctl(vcpu, KVM_SET_SREGS, &system) != 0) { return KvmError("KVM_SET_SREGS"); }
  kvm_regs registers{};
  registers.rip = kCode;
  registers.rsp = kStackTop;
  registers.rflags = 2;
  if (::ioctl(vcpu, KVM_SET_REGS, &registers) != 0) { return KvmError("KVM_SET_REGS"); }
  return absl::OkStatus();
}

// Interrupts this thread's KVM_RUN after a while. The signal is blocked in the thread but for KVM_RUN (KVM_SET_SIGNAL_MASK): it ends the run,
// and no handler is needed, which would be the whole process's.
class RunAlarm {
 public:
  absl::Status Arm(int vcpu, int64_t after_ms) {
    signal_ = SIGRTMIN + 3;
    sigset_t own;
    ::sigemptyset(&own);
    ::sigaddset(&own, signal_);
    ::pthread_sigmask(SIG_BLOCK, &own, &before_);
    masked_ = true;
    sigset_t during = before_;
    ::sigdelset(&during, signal_);
    SignalMask mask{.length = 8, .signals = {}};
    // glibc's sigset begins with the kernel's.
    std::memcpy(mask.signals, &during, sizeof(mask.signals));
    if (::ioctl(vcpu, kSetSignalMask, &mask) != 0) { return KvmError("KVM_SET_SIGNAL_MASK"); }
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = signal_;
    event._sigev_un._tid = static_cast<pid_t>(::syscall(SYS_gettid));
    if (::timer_create(CLOCK_MONOTONIC, &event, &timer_) != 0) { return KvmError("timer_create"); }
    armed_ = true;
    itimerspec when{};
    when.it_value.tv_nsec = after_ms % 1000 * 1'000'000;
    when.it_value.tv_sec = after_ms / 1000;
    // Again and again, should one come just before KVM_RUN begins.
    when.it_interval.tv_nsec = 50'000'000;
    if (::timer_settime(timer_, 0, &when, nullptr) != 0) { return KvmError("timer_settime"); }
    return absl::OkStatus();
  }

  ~RunAlarm() {
    if (armed_) { ::timer_delete(timer_); }
    if (!masked_) { return; }
    sigset_t own;
    ::sigemptyset(&own);
    ::sigaddset(&own, signal_);
    const timespec none{};
    while (::sigtimedwait(&own, nullptr, &none) > 0) {}
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  int signal_ = 0;
  sigset_t before_{};
  timer_t timer_{};
  bool masked_ = false;
  bool armed_ = false;
};

struct Outcome {
  uint32_t step = 0;       // of the guest's program
  std::string exit;        // how KVM_RUN ended
  bool finished = false;   // by the program's own `out`
};

std::string ExitName(const kvm_run& run) {
  switch (run.exit_reason) {
    case KVM_EXIT_INTERNAL_ERROR: return absl::StrCat("KVM internal error, suberror ", run.internal.suberror);
    case KVM_EXIT_SHUTDOWN: return "triple fault";
    case KVM_EXIT_FAIL_ENTRY: return "entry to the guest failed";
    case KVM_EXIT_HLT: return "halt";
    default: return absl::StrCat("exit reason ", run.exit_reason);
  }
}

absl::StatusOr<Outcome> RunProgram(int kvm, int vm) {
  FORKD_ASSIGN_OR_RETURN(Mapping memory, Mapping::Anonymous(kMemoryBytes, Mapping::Prefault::kYes));
  LayOutMemory(memory.data());
  kvm_userspace_memory_region region{};
  region.memory_size = kMemoryBytes;
  region.userspace_addr = reinterpret_cast<uint64_t>(memory.data());
  if (::ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) { return KvmError("KVM_SET_USER_MEMORY_REGION"); }
  const UniqueFd vcpu(::ioctl(vm, KVM_CREATE_VCPU, 0));
  if (!vcpu.valid()) { return KvmError("KVM_CREATE_VCPU"); }
  FORKD_RETURN_IF_ERROR(SetUpCpu(kvm, vcpu.get()));
  const int run_bytes = ::ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_bytes < static_cast<int>(sizeof(kvm_run))) { return KvmError("KVM_GET_VCPU_MMAP_SIZE"); }
  void* mapped = ::mmap(nullptr, static_cast<std::size_t>(run_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0);
  if (mapped == MAP_FAILED) { return KvmError("map a vCPU"); }
  const auto* run = static_cast<const kvm_run*>(mapped);
  Outcome outcome;
  absl::Status status;
  {
    RunAlarm alarm;
    status = alarm.Arm(vcpu.get(), kRunLimitMs);
    if (status.ok()) {
      const int ran = ::ioctl(vcpu.get(), KVM_RUN, 0);
      if (ran != 0 && errno == EINTR) {
        outcome.exit = absl::StrCat("still running after ", kRunLimitMs, " ms");
      } else if (ran != 0) {
        status = KvmError("KVM_RUN");
      } else {
        outcome.finished = run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10;
        outcome.exit = outcome.finished ? "wrong result" : ExitName(*run);
      }
    }
  }
  std::memcpy(&outcome.step, memory.data() + kStepAddress, sizeof(outcome.step));
  ::munmap(mapped, static_cast<std::size_t>(run_bytes));
  if (!status.ok()) { return status; }
  return outcome;
}

bool IsPvm() { return ::access("/sys/module/kvm_pvm", F_OK) == 0; }

}  // namespace

AcceleratorProbe ProbeKvmBlocking(const std::string& device) {
  AcceleratorProbe probe;
  const UniqueFd kvm(::open(device.c_str(), O_RDWR | O_CLOEXEC));
  if (!kvm.valid()) {
    probe.reason = std::string(ErrnoError(errno, absl::StrCat("open ", Quoted(device))).message());
    return probe;
  }
  const int version = ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION) {
    probe.reason = absl::StrCat(Quoted(device), " is no KVM of API version ", KVM_API_VERSION);
    return probe;
  }
  const UniqueFd vm(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (!vm.valid()) {
    probe.reason = std::string(KvmError("KVM_CREATE_VM").message());
    return probe;
  }
  probe.present = true;
  const absl::StatusOr<Outcome> outcome = RunProgram(kvm.get(), vm.get());
  if (!outcome.ok()) {
    probe.reason = std::string(outcome.status().message());
    return probe;
  }
  probe.usable = outcome->finished && outcome->step == kAllSteps;
  if (probe.usable) {
    probe.reason = "ring-0 code runs: cmpxchg16b, int3, xsave/xrstor, and a loop at hardware speed";
    return probe;
  }
  probe.reason = absl::StrCat("ring-0 code does not run: ", StepName(outcome->step), ": ", outcome->exit);
  if (IsPvm()) { absl::StrAppend(&probe.reason, " (this host's KVM is kvm_pvm, without hardware virtualisation: only a guest kernel built for it runs)"); }
  return probe;
}

}  // namespace forkd::vmm
