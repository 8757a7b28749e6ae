// What a guest's status means to a caller on the host. The guest chooses code and text freely: only the contract's codes pass, and the text is cut and
// escaped.
#ifndef FORKD_GUEST_CLIENT_GUEST_STATUS_H_
#define FORKD_GUEST_CLIENT_GUEST_STATUS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "guest/ttrpc/ttrpc.pb.h"

namespace forkd::guest {

absl::Status StatusFromGuest(absl::string_view method, const ttrpc::Status& status);

// Whether a message has at most `limit` fields at its top level: parsing turns two bytes of an empty repeated message into a hundred of memory.
bool HasFewFields(absl::string_view message, int limit);

}  // namespace forkd::guest

#endif  // FORKD_GUEST_CLIENT_GUEST_STATUS_H_
