#include "cli/generic_call.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace forkd::cli {
namespace pb = google::protobuf;
namespace {

// Above the largest answer of the contract (two outputs of 16 MiB, each also in its raw form).
constexpr int kMaxReceiveBytes = 80 << 20;
constexpr std::chrono::milliseconds kTick(100);

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  // A daemon is reached directly: a proxy that the environment names for the web would only get in the way.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetUserAgentPrefix("forkctl");
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

GenericCall::GenericCall(std::shared_ptr<grpc::Channel> channel, const pb::MethodDescriptor* method,
                         std::optional<std::chrono::milliseconds> deadline, OnWait on_wait)
    : channel_(std::move(channel)), stub_(channel_), on_wait_(std::move(on_wait)) {
  if (deadline.has_value()) {
    context_.set_deadline(std::chrono::system_clock::now() + *deadline);
  }
  // Every shape of call is a stream on the wire; a unary one has one message each way.
  stream_ = stub_.PrepareCall(&context_, absl::StrCat("/", method->service()->full_name(), "/", method->name()), &queue_);
  stream_->StartCall(this);
  alive_ = Wait();
}

GenericCall::~GenericCall() {
  if (!finished_) {
    context_.TryCancel();
    Finish();
  }
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool GenericCall::Wait() {
  void* tag = nullptr;
  bool ok = false;
  while (true) {
    switch (queue_.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kTick)) {
      case grpc::CompletionQueue::GOT_EVENT:
        return ok;
      case grpc::CompletionQueue::SHUTDOWN:
        return false;
      case grpc::CompletionQueue::TIMEOUT:
        if (on_wait_) {
          on_wait_(Clock::now() - began_);
        }
    }
  }
}

bool GenericCall::Write(const pb::Message& message) {
  if (!alive_) {
    return false;
  }
  const grpc::Slice slice(message.SerializeAsString());
  stream_->Write(grpc::ByteBuffer(&slice, 1), this);
  alive_ = Wait();
  return alive_;
}

bool GenericCall::WritesDone() {
  if (!alive_) {
    return false;
  }
  stream_->WritesDone(this);
  alive_ = Wait();
  return alive_;
}

bool GenericCall::Read(pb::Message* message) {
  if (!alive_) {
    return false;
  }
  grpc::ByteBuffer buffer;
  stream_->Read(&buffer, this);
  alive_ = Wait();
  if (!alive_) {
    return false;
  }
  grpc::Slice slice;
  if (!buffer.DumpToSingleSlice(&slice).ok() || !message->ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
    garbled_ = true;
    alive_ = false;
    context_.TryCancel();
    return false;
  }
  return true;
}

grpc::Status GenericCall::Finish() {
  grpc::Status status;
  stream_->Finish(&status, this);
  Wait();
  finished_ = true;
  if (garbled_) {
    return {grpc::StatusCode::INTERNAL, "the answer is not of the type that the contract says; forkctl and forkd-controller differ in version"};
  }
  return status;
}

}  // namespace forkd::cli
