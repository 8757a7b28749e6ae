// What works on this host and what does not, found by trying it.
#ifndef FORKD_SERVER_DOCTOR_H_
#define FORKD_SERVER_DOCTOR_H_

#include <string>

#include "proto/forkd/v1/admin.pb.h"
#include "server/options.h"

namespace forkd::server {

// Blocking, up to a few seconds (the KVM probe); no side effects.
v1::DoctorResponse ExamineHostBlocking(const ServeOptions& options);

}  // namespace forkd::server

#endif  // FORKD_SERVER_DOCTOR_H_
