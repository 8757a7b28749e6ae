#include "guest/ttrpc/frame.h"

#include <algorithm>
#include <cstring>

namespace forkd::ttrpc {
namespace {

uint32_t LoadBigEndian32(const unsigned char* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}

void AppendBigEndian32(uint32_t value, std::string* out) {
  for (int shift = 24; shift >= 0; shift -= 8) { out->push_back(static_cast<char>(value >> shift & 0xff)); }
}

}  // namespace

void AppendHeader(std::size_t data_bytes, uint32_t stream_id, FrameType type, uint8_t flags, std::string* out) {
  AppendBigEndian32(static_cast<uint32_t>(data_bytes), out);
  AppendBigEndian32(stream_id, out);
  out->push_back(static_cast<char>(type));
  out->push_back(static_cast<char>(flags));
}

void AppendFrame(const Frame& frame, std::string* out) {
  AppendHeader(frame.data.size(), frame.stream_id, frame.type, frame.flags, out);
  out->append(frame.data);
}

FrameParser::Result FrameParser::Feed(std::span<const char>* in) {
  if (broken_) { return Result::kBroken; }
  if (header_have_ < kHeaderBytes) {
    if (header_have_ == 0) { header_offset_ = consumed_; }
    const std::size_t take = std::min(kHeaderBytes - header_have_, in->size());
    if (take > 0) { std::memcpy(header_ + header_have_, in->data(), take); }
    header_have_ += take;
    consumed_ += take;
    *in = in->subspan(take);
    if (header_have_ < kHeaderBytes) { return Result::kNeedMore; }
    data_want_ = LoadBigEndian32(header_);
    frame_ = Frame{};
    frame_.stream_id = LoadBigEndian32(header_ + 4);
    frame_.type = static_cast<FrameType>(header_[8]);
    frame_.flags = header_[9];
    if (data_want_ > max_data_bytes_) {
      broken_ = true;
      why_ = "frame longer than the limit";
    } else if (header_[8] < 1 || header_[8] > 3) {
      broken_ = true;
      why_ = "unknown frame type";
    }
    if (broken_) { return Result::kBroken; }
  }
  const std::size_t take = std::min(data_want_ - frame_.data.size(), in->size());
  frame_.data.append(in->data(), take);
  consumed_ += take;
  *in = in->subspan(take);
  if (frame_.data.size() < data_want_) { return Result::kNeedMore; }
  header_have_ = 0;
  return Result::kFrame;
}

void FrameParser::Reset() {
  header_have_ = 0;
  data_want_ = 0;
  frame_ = Frame{};
  broken_ = false;
  why_ = "";
  consumed_ = 0;
  header_offset_ = 0;
}

}  // namespace forkd::ttrpc
