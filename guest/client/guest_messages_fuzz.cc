// What a guest sends inside frames: messages of streams, statuses. Property: windows and buffers never leave their bounds.
#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <string>

#include "guest/client/agent_connection.h"
#include "guest/client/guest_status.h"

namespace {

using namespace forkd::guest;

template <typename State, typename Invariant>
void Feed(const forkd::Executor& executor, const std::string& bytes, Invariant invariant) {
  State state(executor);
  // Pieces by a length byte each.
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t size = static_cast<unsigned char>(bytes[at]);
    const absl::Status status = state.OnMessage(bytes.substr(at + 1, size));
    invariant(state);
    if (!status.ok()) { return; }
    at += 1 + size;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  static boost::asio::io_context io;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  Feed<ExecState>(io.get_executor(), bytes, [](const ExecState& state) {
    if (state.out[0].size() + state.out[1].size() + state.window != kDefaultWindowBytes) { abort(); }
    if (state.stdin_window > kDefaultWindowBytes) { abort(); }
  });
  Feed<ReadState>(io.get_executor(), bytes, [](const ReadState& state) {
    if (state.data.size() + state.window != kDefaultWindowBytes) { abort(); }
  });
  Feed<WriteState>(io.get_executor(), bytes, [](const WriteState& state) {
    if (state.window > kDefaultWindowBytes) { abort(); }
  });
  forkd::ttrpc::Response response;
  if (response.ParseFromString(bytes)) {
    const absl::Status status = StatusFromGuest("ReadFile", response.status());
    if (status.ok() != (response.status().code() == 0) || status.message().size() > 4096) { abort(); }
  }
  (void)HasFewFields(bytes, 10);
  return 0;
}
