// Any bytes, cut at any place: no crash, and what was parsed does not depend on where they were cut.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "vmm/qemu/qmp_reply.h"

namespace {

std::vector<std::string> LinesOf(absl::string_view bytes, std::size_t step, bool* broken) {
  forkd::vmm::QmpLines lines;
  std::vector<std::string> all;
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    if (!lines.Append(bytes.substr(at, step)).ok()) {
      *broken = true;
      break;
    }
    while (std::optional<std::string> line = lines.Next()) { all.push_back(*std::move(line)); }
  }
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  bool broken = false;
  const std::vector<std::string> whole = LinesOf(bytes, size + 1, &broken);
  const std::vector<std::string> pieces = LinesOf(bytes, 1 + size / 7, &broken);
  if (!broken && whole != pieces) { std::abort(); }
  for (const std::string& line : whole) {
    const absl::StatusOr<forkd::vmm::QmpMessage> message = forkd::vmm::ParseQmpMessage(line);
    if (!message.ok() && message.status().message().size() > 1024) { std::abort(); }
  }
  return 0;
}
