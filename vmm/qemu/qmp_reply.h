// What QEMU says on its control socket (docs/interop/qmp-spec.txt), from bytes to typed messages. Pure: no I/O, no clock.
#ifndef FORKD_VMM_QEMU_QMP_REPLY_H_
#define FORKD_VMM_QEMU_QMP_REPLY_H_

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace forkd::vmm {

// The longest answer that we ask for is a console of 64 KiB in base64 (88 KiB).
inline constexpr std::size_t kMaxQmpLineBytes = 256 << 10;

struct QmpGreeting {
  int major = 0;
  int minor = 0;
};
struct QmpReturn {
  std::string id;
  nlohmann::json value;
};
struct QmpFailure {
  std::string id;
  std::string error_class;
  std::string description;
};
struct QmpEvent {
  std::string name;
  nlohmann::json data;  // an object, empty if the event has none
};
using QmpMessage = std::variant<QmpGreeting, QmpReturn, QmpFailure, QmpEvent>;

// One line without its end. INTERNAL (VMM_PROTOCOL) for whatever is none of the four, replies without an id of ours included.
absl::StatusOr<QmpMessage> ParseQmpMessage(absl::string_view line);

// Cuts a stream into lines.
class QmpLines {
 public:
  // INTERNAL (VMM_PROTOCOL) once an unfinished line has more than kMaxQmpLineBytes; the stream is then broken for good.
  absl::Status Append(absl::string_view bytes);
  // The next complete line, without "\r\n"; nullopt until there is one. Empty lines are skipped.
  std::optional<std::string> Next();

 private:
  std::string buffer_;
  std::size_t consumed_ = 0;
};

}  // namespace forkd::vmm

#endif  // FORKD_VMM_QEMU_QMP_REPLY_H_
