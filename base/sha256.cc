#include "base/sha256.h"

#include <openssl/evp.h>

#include <cstdlib>

namespace forkd {
namespace {

// Fetched once: EVP_sha256() looks the provider up again at each init, which shows when many small things are hashed.
const EVP_MD* Algorithm() {
  static const EVP_MD* const md = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return md;
}

// SHA-256 fails without memory alone, or where OpenSSL's configuration forbids it; nothing sensible can go on then.
void OrDie(int openssl_result) {
  if (openssl_result != 1) { std::abort(); }
}

}  // namespace

struct Sha256::Impl {
  Impl() : context(EVP_MD_CTX_new()) {
    if (context == nullptr || Algorithm() == nullptr) { std::abort(); }
    OrDie(EVP_DigestInit_ex2(context, Algorithm(), nullptr));
  }
  ~Impl() { EVP_MD_CTX_free(context); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  EVP_MD_CTX* context;
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(absl::string_view bytes) { OrDie(EVP_DigestUpdate(impl_->context, bytes.data(), bytes.size())); }

void Sha256::UpdateU64(std::uint64_t value) {
  std::array<char, 8> bytes;
  for (char& byte : bytes) {
    byte = static_cast<char>(value & 0xff);
    value >>= 8;
  }
  Update(absl::string_view(bytes.data(), bytes.size()));
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  OrDie(EVP_DigestFinal_ex(impl_->context, digest.data(), nullptr));
  OrDie(EVP_DigestInit_ex2(impl_->context, Algorithm(), nullptr));
  return digest;
}

Sha256Digest Sha256Of(absl::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Finish();
}

std::string ToHex(const Sha256Digest& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * digest.size());
  for (const std::uint8_t byte : digest) {
    hex.push_back(kDigits[byte >> 4]);
    hex.push_back(kDigits[byte & 0xf]);
  }
  return hex;
}

std::optional<Sha256Digest> Sha256FromHex(absl::string_view hex) {
  Sha256Digest digest = {};
  if (hex.size() != 2 * digest.size()) { return std::nullopt; }
  for (std::size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0) { return std::nullopt; }
    digest[i / 2] = static_cast<std::uint8_t>(digest[i / 2] << 4 | value);
  }
  return digest;
}

}  // namespace forkd
