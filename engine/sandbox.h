// A live sandbox: its row, its VM, the channel to its agent. I/O thread only.
#ifndef FORKD_ENGINE_SANDBOX_H_
#define FORKD_ENGINE_SANDBOX_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/async_mutex.h"
#include "engine/admission.h"
#include "engine/resident_snapshots.h"
#include "engine/specs.h"
#include "guest/client/agent_client.h"
#include "vmm/vmm.h"

namespace forkd::engine {

struct Sandbox {
  Sandbox(SandboxRow r, Executor executor) : view(std::move(r)), transition(executor), row_write(executor), agent_connect(executor) {}

  const SandboxId& id() const { return view.row.id; }
  SandboxState state() const { return view.row.state; }

  SandboxView view;
  std::unique_ptr<vmm::Vm> vm;
  // A standby child's that could not be claimed; ended.
  std::unique_ptr<vmm::Vm> abandoned_vm;
  std::shared_ptr<guest::AgentClient> agent;
  // What it was forked from; keeps the root's memory counted and shared. Null after a restart until somebody asks.
  std::shared_ptr<const ResidentSnapshot> origin;
  ttrpc::SyncToken sync_token;
  MemoryReservation reservation;

  // Restored already (standby_pool.h): its start is a claim.
  bool claimed = false;
  // One change of state at a time: pause, resume, branch, delete.
  AsyncMutex transition;
  // The registry's rows are compared by generation: one write at a time.
  AsyncMutex row_write;
  AsyncMutex agent_connect;
  // Delete was asked for: whatever waits gives up with SANDBOX_DELETED.
  bool deleting = false;
  int active_calls = 0;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_SANDBOX_H_
