// ttrpc's frames: a 10-byte header (data length, stream id: 4 bytes big-endian each; type, flags: 1 byte each), then the data. Pure: no I/O, no
// clock. Source: containerd/ttrpc, PROTOCOL.md. Shared by the host and by the static agent, so it depends on the standard library alone.
#ifndef FORKD_GUEST_TTRPC_FRAME_H_
#define FORKD_GUEST_TTRPC_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace forkd::ttrpc {

inline constexpr std::size_t kHeaderBytes = 10;
// The protocol's limit (ttrpc, channel.go: messageLengthMax). Senders of ours stay far below.
inline constexpr std::size_t kMaxDataBytes = 4u << 20;

enum class FrameType : uint8_t { kRequest = 1, kResponse = 2, kData = 3 };

inline constexpr uint8_t kFlagRemoteClosed = 0x01;
inline constexpr uint8_t kFlagRemoteOpen = 0x02;
inline constexpr uint8_t kFlagNoData = 0x04;

struct Frame {
  uint32_t stream_id = 0;
  FrameType type = FrameType::kRequest;
  uint8_t flags = 0;
  std::string data;

  bool operator==(const Frame&) const = default;
};

// Appends the frame's bytes. `frame.data` must not be longer than kMaxDataBytes.
void AppendFrame(const Frame& frame, std::string* out);

// The header alone, for a body of `data_bytes` that the caller appends itself.
void AppendHeader(std::size_t data_bytes, uint32_t stream_id, FrameType type, uint8_t flags, std::string* out);

// Takes a byte stream apart, in pieces of any size. After kBroken nothing more is parsed until Reset.
class FrameParser {
 public:
  enum class Result { kNeedMore, kFrame, kBroken };

  // `max_data_bytes` lowers the protocol's limit.
  explicit FrameParser(std::size_t max_data_bytes = kMaxDataBytes) : max_data_bytes_(max_data_bytes) {}

  // Takes bytes from the front of `*in` (and shortens it) until a frame is complete (kFrame: it is in frame()), the input is used up (kNeedMore),
  // or the stream is broken (kBroken: why and where say so). Memory is taken as bytes arrive, never on the word of a header.
  Result Feed(std::span<const char>* in);

  // Valid after kFrame, until the next Feed. May be moved from.
  Frame& frame() { return frame_; }
  // After kBroken: what is wrong, and the offset in the whole stream of the header that says so.
  const char* why() const { return why_; }
  uint64_t offset() const { return header_offset_; }

  // Forgets a partial frame or a broken stream, and counts offsets from 0 again.
  void Reset();
  // Whether a frame has begun and is not complete.
  bool InFrame() const { return header_have_ > 0; }

 private:
  std::size_t max_data_bytes_;
  unsigned char header_[kHeaderBytes] = {};
  std::size_t header_have_ = 0;
  std::size_t data_want_ = 0;
  Frame frame_;
  bool broken_ = false;
  const char* why_ = "";
  uint64_t consumed_ = 0;
  uint64_t header_offset_ = 0;
};

}  // namespace forkd::ttrpc

#endif  // FORKD_GUEST_TTRPC_FRAME_H_
