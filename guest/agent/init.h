// What PID 1 does before it serves. Kernel command line:
//   forkd.sync=<32 hex>     required: the connection's token (guest/ttrpc/sync.h)
//   forkd.root=/dev/vda     a squashfs, mounted read-only below a tmpfs overlay, which becomes the root. Without it the initramfs is the root.
//   forkd.overlay_mib=N     the overlay's size; default: half of the memory
// Of the initramfs: /etc/forkd/modules (names, one a line, in order, each /lib/forkd-modules/NAME.ko, or a path that ends in .ko).
// One line on the console for each phase; a failure says why and ends the machine.
#ifndef FORKD_GUEST_AGENT_INIT_H_
#define FORKD_GUEST_AGENT_INIT_H_

#include "base/unique_fd.h"
#include "guest/ttrpc/sync.h"

namespace forkd::agent {

struct Machine {
  // The virtio-serial port named forkd.agent, open for reading and writing.
  UniqueFd port;
  ttrpc::SyncToken token;
};

// Once, as PID 1. Does not return on failure.
Machine BringUp();

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_INIT_H_
