#include "base/utf8.h"

#include <cstddef>
#include <cstdint>

namespace forkd {
namespace {

// The shape of a sequence by its first byte: how many follow, and the range of the first of these (the later ones are 80-BF).
struct Shape {
  int following;
  std::uint8_t min;
  std::uint8_t max;
};

Shape ShapeOf(std::uint8_t lead) {
  if (lead < 0x80) { return {0, 0, 0}; }
  if (lead < 0xc2) { return {-1, 0, 0}; }  // a following byte, or overlong
  if (lead < 0xe0) { return {1, 0x80, 0xbf}; }
  if (lead == 0xe0) { return {2, 0xa0, 0xbf}; }  // below A0: overlong
  if (lead == 0xed) { return {2, 0x80, 0x9f}; }  // above 9F: surrogates
  if (lead < 0xf0) { return {2, 0x80, 0xbf}; }
  if (lead == 0xf0) { return {3, 0x90, 0xbf}; }  // below 90: overlong
  if (lead < 0xf4) { return {3, 0x80, 0xbf}; }
  if (lead == 0xf4) { return {3, 0x80, 0x8f}; }  // above 8F: beyond U+10FFFF
  return {-1, 0, 0};
}

}  // namespace

bool IsUtf8(absl::string_view bytes) {
  for (std::size_t i = 0; i < bytes.size();) {
    const Shape shape = ShapeOf(static_cast<std::uint8_t>(bytes[i++]));
    if (shape.following < 0) { return false; }
    for (int k = 0; k < shape.following; ++k, ++i) {
      const std::uint8_t min = k == 0 ? shape.min : 0x80;
      const std::uint8_t max = k == 0 ? shape.max : 0xbf;
      if (i >= bytes.size() || static_cast<std::uint8_t>(bytes[i]) < min || static_cast<std::uint8_t>(bytes[i]) > max) { return false; }
    }
  }
  return true;
}

}  // namespace forkd
