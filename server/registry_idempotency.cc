#include "server/registry_idempotency.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "engine/engine.h"
#include "spdlog/spdlog.h"

namespace forkd::server {

Task<absl::StatusOr<std::optional<std::string>>> RegistryIdempotency::Begin(std::string key, std::string fingerprint, std::string method,
                                                                            std::string request_id) {
  engine::IdempotencyKey row;
  row.key = std::move(key);
  row.method = std::move(method);
  std::copy_n(fingerprint.begin(), std::min(fingerprint.size(), row.fingerprint.size()), row.fingerprint.begin());
  auto begin = [this, row] { return registry_->BeginIdempotentBlocking(row, engine::NowUnix()); };
  absl::StatusOr<engine::IdempotentStart> start = co_await pool_->Run(std::move(begin));
  if (!start.ok()) { co_return start.status(); }
  if (auto* replay = std::get_if<engine::IdempotentReplay>(&*start)) { co_return std::optional<std::string>(std::move(replay->result)); }
  co_return std::optional<std::string>();
}

Task<absl::Status> RegistryIdempotency::Finish(std::string key, std::string reply) {
  auto finish = [this, result = engine::IdempotentResult{std::move(key), std::move(reply)}] { return registry_->FinishIdempotentBlocking(result); };
  co_return co_await pool_->Run(std::move(finish));
}

Task<void> RegistryIdempotency::Abandon(std::string key) {
  auto abandon = [this, key] { return registry_->AbandonIdempotentBlocking(key); };
  if (const absl::Status abandoned = co_await pool_->Run(std::move(abandon)); !abandoned.ok()) {
    spdlog::error("idempotency key not freed error=\"{}\"", std::string(abandoned.message()));
  }
}

}  // namespace forkd::server
