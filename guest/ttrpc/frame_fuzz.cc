// Property: any split of the input gives the same frames, and what was parsed encodes to the bytes it was parsed from.
#include <cstdlib>
#include <string>

#include "guest/ttrpc/frame.h"

namespace {

using forkd::ttrpc::Frame;
using forkd::ttrpc::FrameParser;

std::string Reencoded(std::string_view bytes, std::size_t first, bool* broken) {
  FrameParser parser(64 * 1024);
  std::string out;
  for (std::string_view piece : {bytes.substr(0, first), bytes.substr(first)}) {
    std::span<const char> in(piece);
    FrameParser::Result result;
    while ((result = parser.Feed(&in)) == FrameParser::Result::kFrame) { forkd::ttrpc::AppendFrame(parser.frame(), &out); }
    *broken = result == FrameParser::Result::kBroken;
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  if (size < 1) { return 0; }
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  bool whole_broken = false;
  bool split_broken = false;
  const std::string whole = Reencoded(bytes, bytes.size(), &whole_broken);
  const std::string split = Reencoded(bytes, data[0] % (bytes.size() + 1), &split_broken);
  if (whole != split || whole_broken != split_broken) { abort(); }
  if (bytes.substr(0, whole.size()) != whole) { abort(); }
  return 0;
}
