// The bridge's idempotency over the registry.
#ifndef FORKD_SERVER_REGISTRY_IDEMPOTENCY_H_
#define FORKD_SERVER_REGISTRY_IDEMPOTENCY_H_

#include <string>

#include "base/blocking_pool.h"
#include "engine/registry/registry.h"
#include "server/call.h"

namespace forkd::server {

// Borrows both; they outlive it.
class RegistryIdempotency final : public IdempotencyStore {
 public:
  RegistryIdempotency(engine::Registry* registry, BlockingPool* pool) : registry_(registry), pool_(pool) {}

  Task<absl::StatusOr<std::optional<std::string>>> Begin(std::string key, std::string fingerprint, std::string method,
                                                         std::string request_id) override;
  Task<absl::Status> Finish(std::string key, std::string reply) override;
  Task<void> Abandon(std::string key) override;

 private:
  engine::Registry* const registry_;
  BlockingPool* const pool_;
};

}  // namespace forkd::server

#endif  // FORKD_SERVER_REGISTRY_IDEMPOTENCY_H_
