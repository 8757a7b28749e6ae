// What the engine keeps for an idempotency key: the very reply that the client gets.
#ifndef FORKD_SERVER_REMEMBER_H_
#define FORKD_SERVER_REMEMBER_H_

#include <optional>
#include <string>
#include <utility>

#include "engine/registry/registry.h"

namespace forkd::server {

// A Remember function (engine/specs.h) for `key`; empty, which remembers nothing, for an empty key. `to_reply` makes the reply's message.
template <typename ToReply>
auto RememberAs(std::string key, ToReply to_reply) {
  return [key = std::move(key), to_reply = std::move(to_reply)](const auto& result) -> std::optional<engine::IdempotentResult> {
    if (key.empty()) { return std::nullopt; }
    return engine::IdempotentResult{key, to_reply(result).SerializeAsString()};
  };
}

}  // namespace forkd::server

#endif  // FORKD_SERVER_REMEMBER_H_
