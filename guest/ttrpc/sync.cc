#include "guest/ttrpc/sync.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "guest/ttrpc/frame.h"

namespace forkd::ttrpc {
namespace {

void FillRandom(unsigned char* out, std::size_t size) {
  // Requests of up to 256 bytes are never cut short once the generator is ready (getrandom(2)); only a signal can come before that.
  while (getrandom(out, size, 0) != static_cast<ssize_t>(size)) {
    if (errno != EINTR) { abort(); }
  }
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') { return c - '0'; }
  if (c >= 'a' && c <= 'f') { return c - 'a' + 10; }
  if (c >= 'A' && c <= 'F') { return c - 'A' + 10; }
  return -1;
}

}  // namespace

SyncToken SyncToken::Random() {
  SyncToken token;
  FillRandom(token.bytes.data(), token.bytes.size());
  return token;
}

std::optional<SyncToken> SyncToken::FromHex(const std::string& hex) {
  if (hex.size() != 2 * kTokenBytes) { return std::nullopt; }
  SyncToken token;
  for (std::size_t i = 0; i < kTokenBytes; ++i) {
    const int high = HexDigit(hex[2 * i]);
    const int low = HexDigit(hex[2 * i + 1]);
    if (high < 0 || low < 0) { return std::nullopt; }
    token.bytes[i] = static_cast<unsigned char>(high * 16 + low);
  }
  return token;
}

std::string SyncToken::ToHex() const {
  std::string hex;
  for (unsigned char byte : bytes) {
    hex.push_back("0123456789abcdef"[byte >> 4]);
    hex.push_back("0123456789abcdef"[byte & 15]);
  }
  return hex;
}

SyncToken SyncToken::Flipped() const {
  SyncToken flipped;
  for (std::size_t i = 0; i < kTokenBytes; ++i) { flipped.bytes[i] = static_cast<unsigned char>(~bytes[i]); }
  return flipped;
}

Nonce RandomNonce() {
  Nonce nonce;
  FillRandom(nonce.data(), nonce.size());
  return nonce;
}

std::string EncodeHello(const SyncToken& token, const Nonce& nonce, uint8_t flags) {
  std::string hello(token.bytes.begin(), token.bytes.end());
  hello.append(nonce.begin(), nonce.end());
  hello.push_back(static_cast<char>(flags));
  return hello;
}

std::string EncodeAnswer(const SyncToken& token, const Nonce& nonce) {
  const SyncToken flipped = token.Flipped();
  std::string answer(flipped.bytes.begin(), flipped.bytes.end());
  answer.append(nonce.begin(), nonce.end());
  return answer;
}

PatternMatcher::PatternMatcher(const std::array<unsigned char, kTokenBytes>& pattern) : pattern_(pattern) {
  std::size_t border = 0;
  for (std::size_t i = 1; i < kTokenBytes; ++i) {
    while (border > 0 && pattern_[i] != pattern_[border]) { border = fail_[border - 1]; }
    if (pattern_[i] == pattern_[border]) { ++border; }
    fail_[i] = border;
  }
}

std::size_t PatternMatcher::Step(unsigned char byte) {
  if (matched_ == kTokenBytes) { matched_ = 0; }
  while (matched_ > 0 && pattern_[matched_] != byte) { matched_ = fail_[matched_ - 1]; }
  if (pattern_[matched_] == byte) { ++matched_; }
  return matched_;
}

void HelloScanner::Feed(std::span<const char> in, const Sink& sink) {
  // The held-back bytes are always a prefix of the token, so they need not be stored: the matcher says how many there are.
  const char* token = reinterpret_cast<const char*>(token_.bytes.data());
  std::string payload;
  const auto hand_on = [&payload, &sink] {
    if (!payload.empty()) { sink.payload(payload); }
    payload.clear();
  };
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (!in_hello_ && matcher_.matched() == 0) {
      // The common case: nothing to hold back until the token's first byte comes.
      const void* first = std::memchr(in.data() + i, token[0], in.size() - i);
      const std::size_t end = first == nullptr ? in.size() : static_cast<std::size_t>(static_cast<const char*>(first) - in.data());
      payload.append(in.data() + i, end - i);
      i = end;
      if (i == in.size()) { break; }
    }
    const std::size_t before = matcher_.matched();
    const std::size_t now = matcher_.Step(static_cast<unsigned char>(in[i]));
    if (now == kTokenBytes) {
      hand_on();
      matcher_.Reset();
      in_hello_ = true;
      hello_rest_.clear();
      void_held_ = 0;
      continue;
    }
    if (in_hello_) {
      // Matching goes on: if the host died here, what looks like our nonce may be the next host's token.
      void_held_ = now;
      hello_rest_.push_back(in[i]);
      if (hello_rest_.size() == kNonceBytes + 1) {
        Hello hello;
        for (std::size_t k = 0; k < kNonceBytes; ++k) { hello.nonce[k] = static_cast<unsigned char>(hello_rest_[k]); }
        hello.flags = static_cast<uint8_t>(hello_rest_[kNonceBytes]);
        hello_rest_.clear();
        in_hello_ = false;
        sink.hello(hello);
      }
      continue;
    }
    // Of the `before` held bytes and this one, the last `now` stay held; the first `decided` are no token.
    const std::size_t decided = before + 1 - now;
    const std::size_t skip = std::min(decided, void_held_);
    void_held_ -= skip;
    const std::size_t from_held = std::min(decided, before);
    if (from_held > skip) { payload.append(token + skip, from_held - skip); }
    if (decided > before) { payload.push_back(in[i]); }
  }
  hand_on();
}

AnswerScanner::AnswerScanner(const SyncToken& token, const Nonce& nonce) : matcher_(token.Flipped().bytes), nonce_(nonce) {}

bool AnswerScanner::Feed(std::span<const char>* in) {
  for (std::size_t i = 0; i < in->size(); ++i) {
    const auto byte = static_cast<unsigned char>((*in)[i]);
    if (matcher_.Step(byte) == kTokenBytes) {
      matcher_.Reset();
      in_nonce_ = true;
      nonce_equal_ = true;
      nonce_have_ = 0;
      continue;
    }
    if (!in_nonce_) { continue; }
    nonce_equal_ = nonce_equal_ && byte == nonce_[nonce_have_];
    if (++nonce_have_ < kNonceBytes) { continue; }
    in_nonce_ = false;  // If it is not ours: the answer to somebody's earlier hello.
    if (nonce_equal_) {
      *in = in->subspan(i + 1);
      return true;
    }
  }
  *in = {};
  return false;
}

FillerSource::FillerSource(const SyncToken& token, const Nonce& nonce, uint8_t flags) : matcher_(token.bytes) {
  for (unsigned char byte : nonce) { matcher_.Step(byte); }
  matcher_.Step(flags);
}

void FillerSource::AppendFillerIfNeeded(std::string* sent) {
  for (char byte : *sent) { matcher_.Step(static_cast<unsigned char>(byte)); }
  if (matcher_.matched() == 0 || matcher_.matched() == kTokenBytes) { return; }
  // The flags byte is free for receivers to ignore: one of the values leaves nothing of the token at the end, whatever the token is.
  for (unsigned flags = kFlagNoData; flags < 256; flags += 2 * kFlagNoData) {
    std::string filler;
    AppendHeader(0, 0, FrameType::kData, static_cast<uint8_t>(flags), &filler);
    PatternMatcher tried = matcher_;
    for (char byte : filler) { tried.Step(static_cast<unsigned char>(byte)); }
    if (tried.matched() == 0) {
      matcher_ = tried;
      sent->append(filler);
      return;
    }
  }
}

}  // namespace forkd::ttrpc
