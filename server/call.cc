#include "server/call.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <array>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace forkd::server {
namespace {

constexpr std::size_t kMaxIdempotencyKeyBytes = 64;
// A client that sets no deadline still does not wait for ever; the longest honest call is the creation of a large snapshot.
constexpr std::chrono::minutes kDefaultDeadline{10};

std::string NewRequestId() {
  std::array<unsigned char, 8> bytes{};
  RAND_bytes(bytes.data(), bytes.size());
  return absl::StrCat("rq-", absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())));
}

std::string DeterministicBytes(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

}  // namespace

void Call::OnCancel(absl::AnyInvocable<void()> fn) {
  if (cancelled_) {
    fn();
    return;
  }
  on_cancel_ = std::move(fn);
}

void Call::Cancel() {
  if (std::exchange(cancelled_, true)) { return; }
  if (on_cancel_) { std::exchange(on_cancel_, nullptr)(); }
}

std::shared_ptr<Call> CallBridge::NewCall(grpc::CallbackServerContext* context, const google::protobuf::Descriptor* message,
                                          const char* method) const {
  std::string user_agent;
  if (const auto it = context->client_metadata().find("user-agent"); it != context->client_metadata().end()) {
    user_agent.assign(it->second.data(), it->second.size());
  }
  // gRPC's "no deadline" is the far end of the system clock.
  const auto left = context->deadline() - std::chrono::system_clock::now();
  const bool given = left < std::chrono::hours(24 * 365);
  const Deadline deadline = given ? Deadline::In(std::chrono::duration_cast<Deadline::Clock::duration>(left)) : Deadline::In(kDefaultDeadline);
  return std::make_shared<Call>(message->file()->service(0)->FindMethodByName(method), NewRequestId(), context->peer(), std::move(user_agent), deadline);
}

absl::Status CallBridge::Enter(const Call& call, std::size_t* admitted) const {
  for (CallGate* gate : gates_) {
    FORKD_RETURN_IF_ERROR(gate->Admit(call));
    ++*admitted;
  }
  return absl::OkStatus();
}

void CallBridge::Leave(const Call& call, std::size_t admitted, const absl::Status& result) const {
  while (admitted > 0) { gates_[--admitted]->Finished(call, result); }
}

absl::StatusOr<CallBridge::Repeatable> CallBridge::RepeatableOf(const google::protobuf::Message& request) {
  const google::protobuf::FieldDescriptor* field = request.GetDescriptor()->FindFieldByName("idempotency_key");
  if (field == nullptr) { return Repeatable{}; }
  Repeatable repeatable;
  repeatable.key = request.GetReflection()->GetString(request, field);
  if (repeatable.key.empty()) { return Repeatable{}; }
  if (repeatable.key.size() > kMaxIdempotencyKeyBytes) {
    return InvalidField("idempotency_key", absl::StrCat("has ", repeatable.key.size(), " bytes; at most ", kMaxIdempotencyKeyBytes));
  }
  std::unique_ptr<google::protobuf::Message> rest(request.New());
  rest->CopyFrom(request);
  rest->GetReflection()->ClearField(rest.get(), field);
  const std::string bytes = DeterministicBytes(*rest);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) { return absl::InternalError("SHA-256 is not available"); }
  repeatable.fingerprint.assign(reinterpret_cast<const char*>(digest.data()), size);
  return repeatable;
}

}  // namespace forkd::server
