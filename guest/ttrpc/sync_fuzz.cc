// Properties: any split of the input gives the same payload and hellos; without a hello, payload is the input but for held-back bytes.
#include <cstdlib>
#include <string>

#include "guest/ttrpc/sync.h"

namespace {

using namespace forkd::ttrpc;

std::string Scan(const SyncToken& token, std::string_view bytes, std::size_t first, int* hellos) {
  HelloScanner scanner(token);
  std::string log;
  HelloScanner::Sink sink;
  sink.payload = [&log](std::span<const char> in) { log.append(in.data(), in.size()); };
  sink.hello = [&log, hellos](const HelloScanner::Hello& hello) {
    ++*hellos;
    log.append("<").append(hello.nonce.begin(), hello.nonce.end()).push_back(static_cast<char>(hello.flags));
  };
  scanner.Feed(bytes.substr(0, first), sink);
  scanner.Feed(bytes.substr(first), sink);
  return log;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  if (size < 2) { return 0; }
  // A token over a small alphabet, so that the fuzzer meets it.
  SyncToken token;
  for (std::size_t i = 0; i < kTokenBytes; ++i) { token.bytes[i] = data[0] >> (i % 8) & 1; }
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  int whole_hellos = 0;
  int split_hellos = 0;
  const std::string whole = Scan(token, bytes, bytes.size(), &whole_hellos);
  const std::string split = Scan(token, bytes, data[1] % (bytes.size() + 1), &split_hellos);
  if (whole != split || whole_hellos != split_hellos) { abort(); }
  if (whole_hellos == 0 && (bytes.substr(0, whole.size()) != whole || bytes.size() - whole.size() > kHelloBytes - 1)) { abort(); }
  AnswerScanner answer(token, Nonce{});
  std::span<const char> in(bytes);
  answer.Feed(&in);
  return 0;
}
