// The one table of machine-readable error reasons (google.rpc.ErrorInfo.reason, domain "forkd"). A published reason never changes its meaning.
#ifndef FORKD_BASE_REASONS_H_
#define FORKD_BASE_REASONS_H_

#include "absl/strings/string_view.h"

namespace forkd {

// clang-format off
#define FORKD_REASONS(X)                                                                                                      \
  X(kInvalidField, "INVALID_FIELD")                    /* a field is missing, malformed or out of range                     */ \
  X(kSnapshotUnknown, "SNAPSHOT_UNKNOWN")              /* no snapshot has that tag                                          */ \
  X(kSnapshotNotReady, "SNAPSHOT_NOT_READY")           /* it is being written, or its creation failed                       */ \
  X(kSnapshotHasDependents, "SNAPSHOT_HAS_DEPENDENTS") /* branches or sandboxes rest on it                                  */ \
  X(kSnapshotDamaged, "SNAPSHOT_DAMAGED")              /* a file is missing, truncated or altered                           */ \
  X(kSnapshotIncompatible, "SNAPSHOT_INCOMPATIBLE")    /* made by another VMM, machine, accelerator or CPU                  */ \
  X(kTagTaken, "TAG_TAKEN")                            /* a snapshot with that tag exists                                   */ \
  X(kSandboxUnknown, "SANDBOX_UNKNOWN")                /* no sandbox has that id                                            */ \
  X(kSandboxNotRunning, "SANDBOX_NOT_RUNNING")         /* the call needs a running sandbox                                  */ \
  X(kSandboxNotPaused, "SANDBOX_NOT_PAUSED")           /* resume needs a paused sandbox                                     */ \
  X(kSandboxBusy, "SANDBOX_BUSY")                      /* another change of this sandbox is under way                       */ \
  X(kSandboxDeleted, "SANDBOX_DELETED")                /* it was deleted while the call ran                                 */ \
  X(kSandboxFailed, "SANDBOX_FAILED")                  /* its VMM ended while the call ran                                  */ \
  X(kIdempotencyKeyReused, "IDEMPOTENCY_KEY_REUSED")   /* the same key came with another request                            */ \
  X(kIdempotencyKeyInProgress, "IDEMPOTENCY_KEY_IN_PROGRESS") /* the first call with that key still runs                */ \
  X(kImageUnknown, "IMAGE_UNKNOWN")                    /* no such guest image; build it first                               */ \
  X(kHostPathRefused, "HOST_PATH_REFUSED")             /* a host file lies outside the image folder or is unfit             */ \
  X(kMemoryExhausted, "MEMORY_EXHAUSTED")              /* admission: the host's memory is spoken for                        */ \
  X(kLimitReached, "LIMIT_REACHED")                    /* a configured limit (count, concurrency, size)                     */ \
  X(kDiskFull, "DISK_FULL")                            /* no space left where state is kept                                 */ \
  X(kHostLimit, "HOST_LIMIT")                          /* descriptors, processes or memory of the host ran out              */ \
  X(kHostMissing, "HOST_MISSING")                      /* a program or kernel feature is missing on the host                */ \
  X(kVmmFailed, "VMM_FAILED")                          /* the VMM ended, or answered with an error                          */ \
  X(kVmmProtocol, "VMM_PROTOCOL")                      /* the VMM's control socket broke its protocol                       */ \
  X(kAgentUnreachable, "AGENT_UNREACHABLE")            /* the guest agent did not answer in time                            */ \
  X(kAgentProtocol, "AGENT_PROTOCOL")                  /* the guest agent broke the protocol                                */ \
  X(kRunnerUnavailable, "RUNNER_UNAVAILABLE")          /* the image has no runner, or it could not start                    */ \
  X(kGuestFile, "GUEST_FILE")                          /* a file operation in the guest was refused                         */ \
  X(kDeadline, "DEADLINE")                             /* the call's deadline passed                                        */ \
  X(kCancelled, "CANCELLED")                           /* the caller went away                                              */ \
  X(kShuttingDown, "SHUTTING_DOWN")                    /* the daemon is stopping                                            */ \
  X(kStateDirInUse, "STATE_DIR_IN_USE")                /* another daemon holds the state folder                             */ \
  X(kStateDirUnsafe, "STATE_DIR_UNSAFE")               /* the state folder could be changed by another user                 */ \
  X(kRegistry, "REGISTRY")                             /* the registry's database answered with an error                    */ \
  X(kSystemCall, "SYSTEM_CALL")                        /* an unexpected failure of the host kernel                          */ \
  X(kUnimplemented, "UNIMPLEMENTED")                   /* this build or driver cannot do it                                 */ \
  X(kInternal, "INTERNAL")                             /* our bug                                                           */
// clang-format on

enum class Reason {
#define FORKD_REASON_ENUM(name, text) name,
  FORKD_REASONS(FORKD_REASON_ENUM)
#undef FORKD_REASON_ENUM
};

absl::string_view ReasonName(Reason reason);

}  // namespace forkd

#endif  // FORKD_BASE_REASONS_H_
