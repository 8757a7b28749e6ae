// How a connection begins in the middle of an older one.
//
// On a virtio-serial port the byte stream outlives the host's connection: after a fork, a restart of the daemon or a broken pipe, the next
// connection finds the guest in the middle of whatever was under way, in both directions. So:
//  - every root snapshot has a random 16-byte token, given to the guest on its kernel command line (forkd.sync=<32 hex>), known to the host;
//  - the host opens with HELLO = token, 8 random bytes (nonce), 1 byte of flags (0; the guest ignores bits that it does not know);
//  - the guest looks for the token in *all* bytes, also inside a frame. On a hit it drops its parser's state and its un-sent output, orphans the
//    streams of the old connection, and answers with ANSWER = the token with every bit flipped, the nonce;
//  - the host drops every byte until it has seen ANSWER with its own nonce.
// The guest does not act on bytes that might be the beginning of a token before the next byte decides; so the host never leaves it waiting: a
// frame that happens to end like the beginning of the token (1 in 256) is followed by a filler frame (AppendFillerIfNeeded).
// The token is no secret against the guest: a guest that sends or provokes it upsets its own connection alone.
//
// Pure, standard library alone.
#ifndef FORKD_GUEST_TTRPC_SYNC_H_
#define FORKD_GUEST_TTRPC_SYNC_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

namespace forkd::ttrpc {

inline constexpr std::size_t kTokenBytes = 16;
inline constexpr std::size_t kNonceBytes = 8;
inline constexpr std::size_t kHelloBytes = kTokenBytes + kNonceBytes + 1;
inline constexpr std::size_t kAnswerBytes = kTokenBytes + kNonceBytes;

struct SyncToken {
  std::array<unsigned char, kTokenBytes> bytes{};

  bool operator==(const SyncToken&) const = default;

  // From the kernel's generator.
  static SyncToken Random();
  // 32 hex digits of either case; nothing else.
  static std::optional<SyncToken> FromHex(const std::string& hex);
  // 32 lower-case hex digits.
  std::string ToHex() const;
  // Every bit flipped: what the guest answers with.
  SyncToken Flipped() const;
};

using Nonce = std::array<unsigned char, kNonceBytes>;
Nonce RandomNonce();

std::string EncodeHello(const SyncToken& token, const Nonce& nonce, uint8_t flags);
std::string EncodeAnswer(const SyncToken& token, const Nonce& nonce);

// Finds one fixed pattern in a byte stream (Knuth, Morris, Pratt): at most `pattern` bytes of memory, one step a byte.
class PatternMatcher {
 public:
  explicit PatternMatcher(const std::array<unsigned char, kTokenBytes>& pattern);
  // Takes one byte; the number of pattern bytes that the stream now ends with. kTokenBytes is a hit, after which matching begins anew.
  std::size_t Step(unsigned char byte);
  std::size_t matched() const { return matched_; }
  void Reset() { matched_ = 0; }

 private:
  std::array<unsigned char, kTokenBytes> pattern_;
  std::array<std::size_t, kTokenBytes> fail_{};  // fail_[i]: the longest proper border of the first i+1 bytes.
  std::size_t matched_ = 0;
};

// The guest's side: separates what belongs to frames from HELLOs.
class HelloScanner {
 public:
  struct Hello {
    Nonce nonce{};
    uint8_t flags = 0;
  };
  // What a stretch of input means, in order.
  struct Sink {
    // Bytes of frames. Valid during the call.
    std::function<void(std::span<const char>)> payload;
    // A connection begins: everything before it is void.
    std::function<void(const Hello&)> hello;
  };

  explicit HelloScanner(const SyncToken& token) : token_(token), matcher_(token.bytes) {}

  // Bytes that may be the beginning of a token are held back (at most kTokenBytes - 1 of them) until the next byte decides.
  void Feed(std::span<const char> in, const Sink& sink);

 private:
  SyncToken token_;
  PatternMatcher matcher_;
  bool in_hello_ = false;  // The token was seen; nonce and flags are being collected.
  std::string hello_rest_;
  std::size_t void_held_ = 0;  // How many of the held bytes, the first ones, belong to a hello and are no payload.
};

// The host's side: drops everything up to the ANSWER with its own nonce.
class AnswerScanner {
 public:
  AnswerScanner(const SyncToken& token, const Nonce& nonce);
  // Takes bytes from the front of `*in`. True when ANSWER has been seen: what is left in `*in` is the new connection's.
  bool Feed(std::span<const char>* in);

 private:
  PatternMatcher matcher_;
  Nonce nonce_;
  std::size_t nonce_have_ = 0;
  bool in_nonce_ = false;
  bool nonce_equal_ = true;
};

// Follows what the host sends after HELLO, and keeps the guest from waiting at the end of a frame.
class FillerSource {
 public:
  // What HELLO said.
  FillerSource(const SyncToken& token, const Nonce& nonce, uint8_t flags);
  // `sent` is one whole frame; appends a filler frame (type data, stream 0, no data: receivers ignore it) to it if it ends like the beginning of
  // the token.
  void AppendFillerIfNeeded(std::string* sent);

 private:
  PatternMatcher matcher_;
};

}  // namespace forkd::ttrpc

#endif  // FORKD_GUEST_TTRPC_SYNC_H_
