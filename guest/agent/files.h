// Files of the guest, for the host. Blocking: they lie in the machine's own memory, or on its read-only root.
#ifndef FORKD_GUEST_AGENT_FILES_H_
#define FORKD_GUEST_AGENT_FILES_H_

#include <memory>

#include "guest/agent/connection.h"
#include "proto/forkd/agent/v1/agent.pb.h"

namespace forkd::agent {

std::shared_ptr<StreamHandler> NewFileRead(Call call);
std::shared_ptr<StreamHandler> NewFileWrite(Call call);
void ListDirectory(const ::forkd::agent::v1::ListDirectoryRequest& request, Call call);
void StatFile(const ::forkd::agent::v1::StatFileRequest& request, Call call);
void RemoveFile(const ::forkd::agent::v1::RemoveFileRequest& request, Call call);

}  // namespace forkd::agent

#endif  // FORKD_GUEST_AGENT_FILES_H_
