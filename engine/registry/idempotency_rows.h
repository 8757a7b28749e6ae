// The table `idempotency`. Each function runs inside the caller's transaction; the meaning and errors are those of Registry's method of that name.
#ifndef FORKD_ENGINE_REGISTRY_IDEMPOTENCY_ROWS_H_
#define FORKD_ENGINE_REGISTRY_IDEMPOTENCY_ROWS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/registry/database.h"
#include "engine/registry/registry.h"

namespace forkd::engine {

absl::StatusOr<IdempotentStart> BeginIdempotent(Database& db, const IdempotencyKey& key, std::int64_t now_unix);
absl::Status FinishIdempotent(Database& db, const IdempotentResult& result);
absl::Status AbandonIdempotent(Database& db, const std::string& key);
absl::StatusOr<int> AbandonAllIdempotent(Database& db);
absl::StatusOr<int> SweepIdempotency(Database& db, std::int64_t now_unix);

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_IDEMPOTENCY_ROWS_H_
