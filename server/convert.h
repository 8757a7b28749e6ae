// Between the contract's messages and the engine's values. Pure.
#ifndef FORKD_SERVER_CONVERT_H_
#define FORKD_SERVER_CONVERT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/engine.h"
#include "proto/forkd/agent/v1/agent.pb.h"
#include "proto/forkd/v1/sandbox.pb.h"
#include "proto/forkd/v1/snapshot.pb.h"

namespace forkd::server {

v1::SandboxInfo ToProto(const engine::SandboxView& view);
v1::CreateSandboxesResponse ToProto(const engine::ForkResult& result);
v1::SnapshotInfo ToProto(const engine::SnapshotView& view);
v1::SnapshotInfoDetail ToProto(const engine::Engine::SnapshotDetail& detail);
v1::SandboxState ToProto(engine::SandboxState state);
v1::Isolation IsolationOf(absl::string_view accelerator);

// INVALID_ARGUMENT for what the descriptors' rules cannot say.
absl::StatusOr<engine::CreateSnapshotSpec> ToSpec(const v1::CreateSnapshotRequest& request, std::string request_id);
absl::StatusOr<engine::ForkSpec> ToSpec(const v1::CreateSandboxesRequest& request, std::string request_id);
absl::StatusOr<engine::BranchSpec> ToSpec(const v1::BranchSandboxRequest& request, std::string request_id);

// A program to run, from either way of asking for one; `Message` is ExecRequest or ExecStart. INVALID_ARGUMENT: a variable's name that is empty
// or holds '=', a working folder that is not absolute.
template <typename Message>
absl::StatusOr<agent::v1::ExecStart> ToAgentExec(const Message& from, absl::string_view field_prefix);

// How a program ended, as exit code, signal and error text; `Message` is ExecResponse or ExecExit.
template <typename Message>
void FillExecEnd(const agent::v1::ExecEnd& end, Message* to);

v1::FileInfo ToProto(const agent::v1::FileInfo& info, absl::string_view path);

// A guest path as the contract allows it: absolute, without `..`. INVALID_ARGUMENT otherwise.
absl::Status CheckGuestPath(absl::string_view path, absl::string_view field);

// `bytes` as UTF-8, each byte that is none replaced by U+FFFD. *changed says whether any was.
std::string ToUtf8(absl::string_view bytes, bool* changed);

}  // namespace forkd::server

#endif  // FORKD_SERVER_CONVERT_H_
