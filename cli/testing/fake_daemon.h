// A gRPC server with the contract's services that answers from a small table: two snapshots, two sandboxes, errors with their details.
#ifndef FORKD_CLI_TESTING_FAKE_DAEMON_H_
#define FORKD_CLI_TESTING_FAKE_DAEMON_H_

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "proto/forkd/v1/admin.grpc.pb.h"
#include "proto/forkd/v1/sandbox.grpc.pb.h"
#include "proto/forkd/v1/snapshot.grpc.pb.h"

namespace forkd::cli {

inline void AddDetail(google::rpc::Status* details, const google::protobuf::Message& detail) { details->add_details()->PackFrom(detail); }

inline grpc::Status FailWith(grpc::StatusCode code, const std::string& message, const std::string& reason,
                             std::vector<const google::protobuf::Message*> more = {}) {
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_domain("forkd");
  info.set_reason(reason);
  AddDetail(&details, info);
  for (const google::protobuf::Message* detail : more) {
    AddDetail(&details, *detail);
  }
  return {code, message, details.SerializeAsString()};
}

inline grpc::Status UnknownSandbox(const std::string& id) {
  return FailWith(grpc::StatusCode::NOT_FOUND, absl::StrCat("sandbox \"", id, "\" does not exist"), "SANDBOX_UNKNOWN");
}

class FakeSnapshots : public v1::SnapshotService::Service {
  grpc::Status CreateSnapshot(grpc::ServerContext*, const v1::CreateSnapshotRequest* request, v1::SnapshotInfo* info) override {
    if (request->tag() == "full") {
      google::rpc::RetryInfo retry;
      retry.mutable_retry_delay()->set_seconds(2);
      retry.mutable_retry_delay()->set_nanos(500'000'000);
      return FailWith(grpc::StatusCode::RESOURCE_EXHAUSTED, "512 MiB are wanted, 100 MiB are free", "MEMORY_EXHAUSTED", {&retry});
    }
    if (request->memory_mib() > 65536) {
      google::rpc::BadRequest bad;
      google::rpc::BadRequest::FieldViolation* violation = bad.add_field_violations();
      violation->set_field("memory_mib");
      violation->set_description("must be 64 to 65536");
      violation = bad.add_field_violations();
      violation->set_field("labels[x]");
      violation->set_description("is too long");
      return FailWith(grpc::StatusCode::INVALID_ARGUMENT, "memory_mib must be 64 to 65536", "INVALID_FIELD", {&bad});
    }
    *info = Snapshot(request->tag());
    info->set_image(request->image());
    return grpc::Status::OK;
  }
  grpc::Status ListSnapshots(grpc::ServerContext*, const v1::ListSnapshotsRequest*, v1::ListSnapshotsResponse* response) override {
    *response->add_snapshots() = Snapshot("py312");
    v1::SnapshotInfo* branch = response->add_snapshots();
    *branch = Snapshot("checkpoint-1");
    branch->set_kind(v1::SNAPSHOT_KIND_BRANCH);
    branch->set_parent_tag("py312");
    branch->set_branched_from("sb-65f0a1b2-0001");
    branch->set_pause_ms(6);
    branch->set_stored_bytes(17'000'000);
    return grpc::Status::OK;
  }
  grpc::Status DeleteSnapshot(grpc::ServerContext*, const v1::DeleteSnapshotRequest* request, v1::DeleteSnapshotResponse*) override {
    if (request->tag() == "py312" && !request->cascade()) {
      google::rpc::PreconditionFailure failure;
      google::rpc::PreconditionFailure::Violation* violation = failure.add_violations();
      violation->set_type("dependent");
      violation->set_subject("snapshot checkpoint-1");
      violation->set_description("was branched from a sandbox of it");
      return FailWith(grpc::StatusCode::FAILED_PRECONDITION, "snapshot \"py312\" has dependents", "SNAPSHOT_HAS_DEPENDENTS", {&failure});
    }
    return grpc::Status::OK;
  }

  static v1::SnapshotInfo Snapshot(const std::string& tag) {
    v1::SnapshotInfo info;
    info.set_tag(tag);
    info.set_dir(absl::StrCat("/var/lib/forkd/snapshots/", tag));
    info.set_created_at_unix(1784700000);
    info.set_status(v1::SNAPSHOT_STATUS_READY);
    info.set_bootable(true);
    info.set_kind(v1::SNAPSHOT_KIND_ROOT);
    info.set_image("python");
    info.set_root_tag("py312");
    info.set_vmm("qemu");
    info.set_accelerator("tcg");
    info.set_isolation(v1::ISOLATION_EMULATED);
    info.set_vcpus(1);
    info.set_memory_mib(512);
    info.set_stored_bytes(536'870'912);
    (*info.mutable_labels())["team"] = "blue";
    (*info.mutable_labels())["app"] = "demo";
    return info;
  }
};

class FakeSandboxes : public v1::SandboxService::Service {
 public:
  v1::ExecRequest last_exec() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_exec_;
  }
  // Until a client has begun to run "never-starts".
  void AwaitStream() {
    std::unique_lock<std::mutex> lock(mutex_);
    stream_began_.wait_for(lock, std::chrono::seconds(20), [this] { return stream_begun_; });
  }
  v1::CreateSandboxesRequest last_create() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_create_;
  }

 private:
  grpc::Status CreateSandboxes(grpc::ServerContext*, const v1::CreateSandboxesRequest* request,
                               v1::CreateSandboxesResponse* response) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_create_ = *request;
    for (int i = 1; i <= (request->has_n() ? request->n() : 1); ++i) {
      *response->add_sandboxes() = Sandbox(absl::StrCat("sb-65f0a1b2-000", i));
    }
    if (request->allow_partial()) {
      v1::CreateFailure* failure = response->add_failures();
      failure->set_index(2);
      failure->set_reason("VMM_FAILED");
      failure->set_message("qemu ended with status 1");
    }
    return grpc::Status::OK;
  }
  grpc::Status ListSandboxes(grpc::ServerContext*, const v1::ListSandboxesRequest*, v1::ListSandboxesResponse* response) override {
    *response->add_sandboxes() = Sandbox("sb-65f0a1b2-0001");
    v1::SandboxInfo* failed = response->add_sandboxes();
    failed->set_id("sb-65f0a1b2-0002");
    failed->set_snapshot_tag("py312");
    failed->set_state(v1::SANDBOX_STATE_FAILED);
    failed->mutable_failure()->set_reason("VMM_FAILED");
    failed->mutable_failure()->set_message("qemu was killed by signal 9");
    return grpc::Status::OK;
  }
  grpc::Status GetSandbox(grpc::ServerContext* context, const v1::GetSandboxRequest* request, v1::SandboxInfo* info) override {
    if (request->id() == "slow") {
      // Longer than any test waits: its client gives up.
      for (int i = 0; i < 600 && !context->IsCancelled(); ++i) {
        ::usleep(100'000);
      }
    }
    if (request->id() == "bare") {
      return {grpc::StatusCode::NOT_FOUND, "gone\x1b[2J"};
    }
    if (request->id() != "sb-65f0a1b2-0001") {
      return UnknownSandbox(request->id());
    }
    *info = Sandbox(request->id());
    return grpc::Status::OK;
  }
  grpc::Status DeleteSandbox(grpc::ServerContext*, const v1::DeleteSandboxRequest*, v1::DeleteSandboxResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status Exec(grpc::ServerContext*, const v1::ExecRequest* request, v1::ExecResponse* response) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_exec_ = *request;
    const std::string& program = request->args(0);
    if (program == "exit7") {
      response->set_stdout("out\n");
      response->set_stderr("err\n");
      response->set_exit_code(7);
    } else if (program == "binary") {
      response->set_stdout("\xEF\xBF\xBD");
      response->set_stdout_raw(std::string("\xff\x00\x1b", 3));
    } else if (program == "killed") {
      response->set_exit_code(-9);
      response->set_signal(9);
      response->set_timed_out(true);
      response->set_error("killed after 30 s");
    } else if (program == "missing") {
      response->set_exit_code(127);
      response->mutable_exec_error()->set_reason("NOT_FOUND");
      response->mutable_exec_error()->set_message("exec \"missing\": no such file or directory");
      response->set_error(response->exec_error().message());
    }
    return grpc::Status::OK;
  }
  // Programs: "cat" returns its input and ends with 7 at its end; "size" tells each size of the terminal and each signal, and ends with "q".
  grpc::Status ExecStream(grpc::ServerContext*, grpc::ServerReaderWriter<v1::ExecStreamResponse, v1::ExecStreamRequest>* stream) override {
    v1::ExecStreamRequest message;
    if (!stream->Read(&message) || !message.has_start()) {
      return FailWith(grpc::StatusCode::INVALID_ARGUMENT, "start must be first", "INVALID_FIELD");
    }
    const v1::ExecStart start = message.start();
    if (start.id() != "sb-65f0a1b2-0001") {
      return UnknownSandbox(start.id());
    }
    v1::ExecStreamResponse answer;
    if (start.args(0) == "missing") {
      answer.mutable_exit()->set_exit_code(127);
      answer.mutable_exit()->set_error("exec \"missing\": no such file or directory");
      stream->Write(answer);
      return grpc::Status::OK;
    }
    if (start.args(0) == "never-starts") {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        stream_begun_ = true;
      }
      stream_began_.notify_all();
      while (stream->Read(&message)) {
      }
      return grpc::Status::CANCELLED;
    }
    answer.mutable_started()->set_pid(42);
    stream->Write(answer);
    const auto say = [&](const std::string& text) {
      v1::ExecStreamResponse out;
      out.set_stdout(text);
      stream->Write(out);
    };
    if (start.tty()) {
      say(absl::StrCat("size ", start.size().rows(), "x", start.size().columns(), "\r\n"));
    }
    int exit_code = 7;
    while (stream->Read(&message)) {
      if (message.has_resize()) {
        say(absl::StrCat("resized ", message.resize().rows(), "x", message.resize().columns(), "\r\n"));
      } else if (message.message_case() == v1::ExecStreamRequest::kSignal && start.args(0) == "stubborn") {
        say(absl::StrCat("ignored ", message.signal(), "\r\n"));
      } else if (message.message_case() == v1::ExecStreamRequest::kSignal) {
        say(absl::StrCat("signal ", message.signal(), "\n"));
        exit_code = -message.signal();
        break;
      } else if (message.message_case() == v1::ExecStreamRequest::kStdin) {
        say(start.tty() ? absl::StrCat("got ", message.stdin().size(), " byte ", static_cast<int>(message.stdin()[0]), "\r\n")
                        : message.stdin());
        if (start.tty() && message.stdin() == "q") {
          break;
        }
      } else if (message.has_close_stdin()) {
        v1::ExecStreamResponse err;
        err.set_stderr("eof\n");
        stream->Write(err);
        break;
      }
    }
    answer.Clear();
    answer.mutable_exit()->set_exit_code(exit_code);
    stream->Write(answer);
    return grpc::Status::OK;
  }
  grpc::Status Eval(grpc::ServerContext*, const v1::EvalRequest* request, v1::EvalResponse* response) override {
    if (request->code() == "1/0") {
      response->set_error("ZeroDivisionError: division by zero");
      response->set_exit_code(1);
      response->set_stderr("Traceback (most recent call last):\n");
    } else {
      response->set_stdout("hello\n");
      response->set_result("'42'");
    }
    return grpc::Status::OK;
  }
  grpc::Status BranchSandbox(grpc::ServerContext*, const v1::BranchSandboxRequest* request, v1::SnapshotInfo* info) override {
    info->set_tag(request->tag());
    info->set_status(request->mode() == v1::BRANCH_MODE_LIVE && !request->wait() ? v1::SNAPSHOT_STATUS_WRITING : v1::SNAPSHOT_STATUS_READY);
    return grpc::Status::OK;
  }
  grpc::Status ReadFile(grpc::ServerContext*, const v1::ReadFileRequest* request, grpc::ServerWriter<v1::ReadFileResponse>* writer) override {
    v1::ReadFileResponse piece;
    piece.mutable_info()->set_path(request->path());
    piece.set_data(std::string("first\0", 6));
    writer->Write(piece);
    piece.Clear();
    piece.set_data("second\xff");
    writer->Write(piece);
    return request->path() == "/broken" ? FailWith(grpc::StatusCode::ABORTED, "the sandbox was deleted", "SANDBOX_DELETED")
                                        : grpc::Status::OK;
  }
  grpc::Status WriteFile(grpc::ServerContext*, grpc::ServerReader<v1::WriteFileRequest>* reader, v1::FileInfo* info) override {
    v1::WriteFileRequest piece;
    while (reader->Read(&piece)) {
      if (!piece.path().empty()) {
        if (piece.path() == "/refused") {
          return FailWith(grpc::StatusCode::PERMISSION_DENIED, "open \"/refused\": permission denied", "GUEST_FILE");
        }
        info->set_path(piece.path());
        info->set_mode(piece.mode());
        info->set_type(v1::FILE_TYPE_FILE);
      }
      info->set_size_bytes(info->size_bytes() + static_cast<int64_t>(piece.data().size()));
    }
    return grpc::Status::OK;
  }
  grpc::Status WatchSandboxes(grpc::ServerContext*, const v1::WatchSandboxesRequest*,
                              grpc::ServerWriter<v1::WatchSandboxesResponse>* writer) override {
    v1::WatchSandboxesResponse event;
    event.set_type(v1::SANDBOX_EVENT_TYPE_CREATED);
    *event.mutable_sandbox() = Sandbox("sb-65f0a1b2-0001");
    writer->Write(event);
    event.set_type(v1::SANDBOX_EVENT_TYPE_DELETED);
    writer->Write(event);
    return grpc::Status::OK;
  }

  static v1::SandboxInfo Sandbox(const std::string& id) {
    v1::SandboxInfo info;
    info.set_id(id);
    info.set_snapshot_tag("py312");
    info.set_netns("forkd-child-1");
    info.set_guest_addr("10.42.0.2:8888");
    info.set_created_at_unix(1784726257);
    info.set_pid(41200);
    info.set_state(v1::SANDBOX_STATE_RUNNING);
    info.set_vmm("qemu");
    info.set_accelerator("tcg");
    info.set_isolation(v1::ISOLATION_EMULATED);
    info.set_vcpus(1);
    info.set_memory_mib(512);
    return info;
  }

  std::mutex mutex_;
  std::condition_variable stream_began_;
  bool stream_begun_ = false;
  v1::ExecRequest last_exec_;
  v1::CreateSandboxesRequest last_create_;
};

class FakeAdmin : public v1::AdminService::Service {
  grpc::Status Doctor(grpc::ServerContext*, const v1::DoctorRequest*, v1::DoctorResponse* response) override {
    v1::DoctorCheck* kvm = response->add_checks();
    kvm->set_name("kvm");
    kvm->set_status(v1::CHECK_STATUS_WARN);
    kvm->set_found("/dev/kvm exists, guest code does not run");
    kvm->set_remedy("emulation is used");
    response->set_healthy(true);
    return grpc::Status::OK;
  }
};

// Serves on a port of its own while it lives.
class FakeDaemon {
 public:
  FakeDaemon() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&snapshots_);
    builder.RegisterService(&sandboxes_);
    builder.RegisterService(&admin_);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  const std::string& address() const { return address_; }
  FakeSandboxes& sandboxes() { return sandboxes_; }
  // Ends every call and every connection.
  void StopNow() { server_->Shutdown(std::chrono::system_clock::now()); }

 private:
  FakeSnapshots snapshots_;
  FakeSandboxes sandboxes_;
  FakeAdmin admin_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace forkd::cli

#endif  // FORKD_CLI_TESTING_FAKE_DAEMON_H_
