#include "engine/registry/idempotency_rows.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status_macros.h"

namespace forkd::engine {
namespace {

// How long the first call may still take is not known; this is about what a fork takes.
constexpr std::chrono::milliseconds kRetryDelay{500};

absl::Status CheckKey(const std::string& key) {
  bool printable = true;
  for (const char c : key) { printable = printable && c >= 0x20 && c <= 0x7e; }
  if (key.empty() || key.size() > kMaxIdempotencyKeyBytes || !printable) {
    return InvalidField("idempotency_key", absl::StrCat("must be 1-", kMaxIdempotencyKeyBytes, " bytes of printable ASCII; got ", Quoted(key)));
  }
  return absl::OkStatus();
}

absl::string_view View(const Sha256Digest& digest) { return absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()); }

}  // namespace

absl::StatusOr<IdempotentStart> BeginIdempotent(Database& db, const IdempotencyKey& key, std::int64_t now_unix) {
  FORKD_RETURN_IF_ERROR(CheckKey(key.key));
  {
    FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("SELECT method, fingerprint, result, created_at_unix FROM idempotency WHERE key=?"));
    FORKD_ASSIGN_OR_RETURN(const bool found, s.Bind(key.key).Step());
    // A call in progress holds its key however old it is.
    if (found && (s.IsNull(2) || s.Int(3) > now_unix - kIdempotencyLifetimeSecs)) {
      if (s.Text(0) != key.method || s.Text(1) != View(key.fingerprint)) {
        return Error(absl::StatusCode::kInvalidArgument, Reason::kIdempotencyKeyReused,
                     absl::StrCat("idempotency_key: ", Quoted(key.key), " came with another request within 24 hours; use a new key"))
            .Meta("idempotency_key", key.key)
            .Field("idempotency_key", "came with another request within 24 hours");
      }
      if (s.IsNull(2)) {
        return Error(absl::StatusCode::kAborted, Reason::kIdempotencyKeyInProgress,
                     absl::StrCat("the first call with idempotency_key ", Quoted(key.key), " still runs"))
            .Meta("idempotency_key", key.key)
            .RetryAfter(kRetryDelay);
      }
      return IdempotentStart(IdempotentReplay{s.Text(2)});
    }
  }
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("INSERT OR REPLACE INTO idempotency (key, method, fingerprint, result, created_at_unix) "
                                                 "VALUES (?,?,?,NULL,?)"));
  FORKD_RETURN_IF_ERROR(s.Bind(key.key).Bind(key.method).BindBlob(View(key.fingerprint)).Bind(now_unix).Run());
  return IdempotentStart(IdempotentFresh{});
}

absl::Status FinishIdempotent(Database& db, const IdempotentResult& result) {
  if (result.result.size() > kMaxIdempotentResultBytes) {
    return Error(absl::StatusCode::kInternal, Reason::kInternal, absl::StrCat("an idempotent result has ", result.result.size(), " bytes"));
  }
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("UPDATE idempotency SET result=? WHERE key=? AND result IS NULL"));
  return s.BindBlob(result.result).Bind(result.key).Run();
}

absl::Status AbandonIdempotent(Database& db, const std::string& key) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("DELETE FROM idempotency WHERE key=? AND result IS NULL"));
  return s.Bind(key).Run();
}

absl::StatusOr<int> AbandonAllIdempotent(Database& db) {
  FORKD_RETURN_IF_ERROR(db.Execute("DELETE FROM idempotency WHERE result IS NULL"));
  return static_cast<int>(db.changes());
}

absl::StatusOr<int> SweepIdempotency(Database& db, std::int64_t now_unix) {
  FORKD_ASSIGN_OR_RETURN(Statement s, db.Prepare("DELETE FROM idempotency WHERE created_at_unix<=? AND result IS NOT NULL"));
  FORKD_RETURN_IF_ERROR(s.Bind(now_unix - kIdempotencyLifetimeSecs).Run());
  return static_cast<int>(db.changes());
}

}  // namespace forkd::engine
