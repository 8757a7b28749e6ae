#include "server/gateway/grpc_stream.h"

#include <boost/asio/post.hpp>
#include <utility>
#include <vector>

#include "base/async_event.h"

namespace forkd::gateway {
namespace {

// gRPC's reactions come on its own threads; each posts to the executor, where everything else happens.
class Stream final : public GrpcStream,
                     public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                     public std::enable_shared_from_this<Stream> {
 public:
  Stream(Executor executor, grpc::GenericStub* stub, std::string path)
      : executor_(executor), stub_(stub), path_(std::move(path)), write_done_(executor), read_done_(executor), ended_(executor) {}

  grpc::ClientContext* context() override { return &context_; }

  void Start() override {
    self_ = shared_from_this();
    stub_->PrepareBidiStreamingCall(&context_, path_, {}, this);
    // Operations are begun from outside reactions: without the hold gRPC could end the call between two of them.
    AddHold();
    // The first read is under way before the call begins: gRPC's in-process transport loses a message that comes together with the status when
    // nobody is reading yet (seen with 1.51: the status is OK, the read finds nothing).
    BeginRead();
    StartCall();
  }

  Task<bool> Write(std::string message, bool last) override {
    const grpc::Slice slice(message);
    outgoing_ = grpc::ByteBuffer(&slice, 1);
    write_done_.Reset();
    if (last) {
      writes_done_ = true;
      StartWriteLast(&outgoing_, {});
    } else {
      StartWrite(&outgoing_);
    }
    co_await write_done_.Wait(Deadline::Never());
    co_return write_ok_;
  }

  Task<bool> WritesDone() override {
    if (std::exchange(writes_done_, true)) { co_return true; }
    write_done_.Reset();
    StartWritesDone();
    co_await write_done_.Wait(Deadline::Never());
    co_return write_ok_;
  }

  Task<bool> Readable(Deadline deadline) override {
    if (!read_begun_) { BeginRead(); }
    co_return co_await read_done_.Wait(deadline);
  }

  Task<std::optional<std::string>> Read() override {
    co_await Readable(Deadline::Never());
    read_begun_ = false;
    if (!read_ok_) { co_return std::nullopt; }
    std::string bytes;
    // A message without fields has no bytes; gRPC calls dumping such a buffer an error.
    if (incoming_.Length() == 0) { co_return bytes; }
    std::vector<grpc::Slice> slices;
    if (!incoming_.Dump(&slices).ok()) { co_return std::nullopt; }
    bytes.reserve(incoming_.Length());
    for (const grpc::Slice& slice : slices) { bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size()); }
    co_return bytes;
  }

  Task<grpc::Status> Finish() override {
    RemoveHold();
    co_await ended_.Wait(Deadline::Never());
    co_return status_;
  }

  void Cancel() override { context_.TryCancel(); }

  void OnWriteDone(bool ok) override {
    boost::asio::post(executor_, [self = self_, ok] {
      self->write_ok_ = ok;
      self->write_done_.Set();
    });
  }
  void OnWritesDoneDone(bool ok) override { OnWriteDone(ok); }
  void OnReadDone(bool ok) override {
    boost::asio::post(executor_, [self = self_, ok] {
      self->read_ok_ = ok;
      self->read_done_.Set();
    });
  }
  void OnDone(const grpc::Status& status) override {
    boost::asio::post(executor_, [self = std::move(self_), status] {
      self->status_ = status;
      self->ended_.Set();
    });
  }

 private:
  void BeginRead() {
    read_begun_ = true;
    read_done_.Reset();
    incoming_.Clear();
    StartRead(&incoming_);
  }

  const Executor executor_;
  grpc::GenericStub* const stub_;
  const std::string path_;
  grpc::ClientContext context_;
  std::shared_ptr<Stream> self_;  // From Start to OnDone: gRPC holds a bare pointer.

  // Executor:
  AsyncEvent write_done_;
  AsyncEvent read_done_;
  AsyncEvent ended_;
  bool write_ok_ = false;
  bool read_begun_ = false;
  bool read_ok_ = false;
  bool writes_done_ = false;
  grpc::Status status_;
  grpc::ByteBuffer outgoing_;
  grpc::ByteBuffer incoming_;
};

}  // namespace

std::shared_ptr<GrpcStream> GrpcStream::Make(Executor executor, grpc::GenericStub* stub, std::string path) {
  return std::make_shared<Stream>(executor, stub, std::move(path));
}

}  // namespace forkd::gateway
