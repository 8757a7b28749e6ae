// SQLite, as little of it as the registry needs: a connection with cached statements, transactions, migrations by user_version.
#ifndef FORKD_ENGINE_REGISTRY_DATABASE_H_
#define FORKD_ENGINE_REGISTRY_DATABASE_H_

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status_macros.h"

namespace forkd::engine {

// One execution of a prepared statement. Values are bound in the order of the calls; what they refer to must live until the last Step. Goes back to
// the connection's cache when destroyed; at most one execution of the same text at a time.
class Statement {
 public:
  explicit Statement(sqlite3_stmt* statement) : statement_(statement) {}
  ~Statement();
  Statement(Statement&& other) noexcept : statement_(std::exchange(other.statement_, nullptr)), bound_(other.bound_) {}
  Statement& operator=(Statement&&) = delete;

  Statement& Bind(absl::string_view text);
  Statement& Bind(std::int64_t value);
  Statement& Bind(const std::optional<std::int64_t>& value);
  Statement& BindOptionalText(const std::optional<std::string>& text);
  Statement& BindBlob(absl::string_view bytes);

  // True: a row is there, its columns can be read. False: done.
  absl::StatusOr<bool> Step();
  // For statements without rows.
  absl::Status Run();

  std::int64_t Int(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string Text(int column) const;
  bool IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
  std::optional<std::int64_t> OptionalInt(int column) const { return IsNull(column) ? std::nullopt : std::optional<std::int64_t>(Int(column)); }

 private:
  sqlite3_stmt* statement_;
  int bound_ = 0;
};

// Not thread-safe. Errors: RESOURCE_EXHAUSTED DISK_FULL; ALREADY_EXISTS INTERNAL for a primary key that is taken; FAILED_PRECONDITION REGISTRY if the
// file is no database, damaged, or newer; INTERNAL REGISTRY for the rest.
class Database {
 public:
  // Opens or makes the file (0600), sets WAL and synchronous=NORMAL, and brings the schema to migrations.size(): migration i leads from version i to
  // i + 1, each in a transaction of its own. A file with a higher user_version is refused. The texts live as long as the program.
  static absl::StatusOr<std::unique_ptr<Database>> OpenBlocking(const std::string& path, absl::Span<const char* const> migrations);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // `sql` is a literal: its address is the cache's key.
  absl::StatusOr<Statement> Prepare(const char* sql);
  absl::Status Execute(const char* sql);
  // True if the file was empty or absent when it was opened.
  bool created() const { return created_; }
  // Rows that the last INSERT, UPDATE or DELETE touched.
  std::int64_t changes() const { return sqlite3_changes64(connection_); }

  // Runs `body` (returns absl::Status) in a write transaction: commits if it is OK, else rolls back.
  template <typename Body>
  absl::Status Transaction(Body body) {
    FORKD_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
    absl::Status status = body();
    if (status.ok()) { status = Execute("COMMIT"); }
    // SQLite may have rolled back by itself (full disk); then this fails, and that is right.
    if (!status.ok()) { (void)Execute("ROLLBACK"); }
    return status;
  }

 private:
  Database(sqlite3* connection, std::string path) : connection_(connection), path_(std::move(path)) {}
  absl::Status Migrate(absl::Span<const char* const> migrations);
  absl::StatusOr<std::int64_t> UserVersion();

  sqlite3* connection_;
  std::string path_;
  bool created_ = false;
  std::map<const char*, sqlite3_stmt*> statements_;
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_DATABASE_H_
