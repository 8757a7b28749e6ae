#include "engine/registry/database.h"

#include <fcntl.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/unique_fd.h"

namespace forkd::engine {
namespace {

// Nobody but this daemon writes; a person's sqlite3 shell or a backup may hold the file for a moment.
constexpr int kBusyTimeoutMs = 5000;

absl::Status DatabaseError(sqlite3* connection, absl::string_view what) {
  const int code = sqlite3_extended_errcode(connection);
  const char* const path = sqlite3_db_filename(connection, "main");
  const std::string message = absl::StrCat("registry ", Quoted(path == nullptr ? "" : path), ": ", what, ": ", sqlite3_errmsg(connection));
  const int system_error = sqlite3_system_errno(connection);
  switch (code & 0xff) {
    case SQLITE_FULL: return Error(absl::StatusCode::kResourceExhausted, Reason::kDiskFull, message);
    case SQLITE_IOERR:
      if (system_error == ENOSPC || system_error == EDQUOT) { return Error(absl::StatusCode::kResourceExhausted, Reason::kDiskFull, message); }
      return Error(absl::StatusCode::kInternal, Reason::kRegistry, absl::StrCat(message, ", errno ", system_error));
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      return Error(absl::StatusCode::kFailedPrecondition, Reason::kRegistry,
                   absl::StrCat(message, "; restore the file from a backup, or move it away and lose sight of the running sandboxes"));
    case SQLITE_CONSTRAINT:
      if (code == SQLITE_CONSTRAINT_PRIMARYKEY) { return Error(absl::StatusCode::kAlreadyExists, Reason::kInternal, message); }
      break;
    default: break;
  }
  return Error(absl::StatusCode::kInternal, Reason::kRegistry, message);
}

}  // namespace

Statement::~Statement() {
  if (statement_ == nullptr) { return; }
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

// What sqlite3_bind answers shows again at Step (SQLITE_RANGE, SQLITE_NOMEM leave a NULL, which the tables' NOT NULL refuses).
Statement& Statement::Bind(absl::string_view text) {
  // An empty view may have a null pointer, which would bind NULL.
  const char* const data = text.data() == nullptr ? "" : text.data();
  sqlite3_bind_text64(statement_, ++bound_, data, text.size(), SQLITE_STATIC, SQLITE_UTF8);
  return *this;
}

Statement& Statement::Bind(std::int64_t value) {
  sqlite3_bind_int64(statement_, ++bound_, value);
  return *this;
}

Statement& Statement::Bind(const std::optional<std::int64_t>& value) {
  if (value.has_value()) { return Bind(*value); }
  sqlite3_bind_null(statement_, ++bound_);
  return *this;
}

Statement& Statement::BindOptionalText(const std::optional<std::string>& text) {
  if (text.has_value()) {
    sqlite3_bind_text64(statement_, ++bound_, text->data(), text->size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  } else {
    sqlite3_bind_null(statement_, ++bound_);
  }
  return *this;
}

Statement& Statement::BindBlob(absl::string_view bytes) {
  const char* const data = bytes.data() == nullptr ? "" : bytes.data();
  sqlite3_bind_blob64(statement_, ++bound_, data, bytes.size(), SQLITE_STATIC);
  return *this;
}

absl::StatusOr<bool> Statement::Step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) { return true; }
  if (code == SQLITE_DONE) { return false; }
  return DatabaseError(sqlite3_db_handle(statement_), "run a statement");
}

absl::Status Statement::Run() {
  for (;;) {
    FORKD_ASSIGN_OR_RETURN(const bool more, Step());
    if (!more) { return absl::OkStatus(); }
  }
}

std::string Statement::Text(int column) const {
  // column_blob for text and blobs alike: the bytes as they are.
  const void* const data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), static_cast<std::size_t>(size));
}

absl::StatusOr<std::unique_ptr<Database>> Database::OpenBlocking(const std::string& path, absl::Span<const char* const> migrations) {
  // Made here, so that its mode does not depend on the umask; SQLite gives the WAL the same mode.
  if (const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)); !file.valid()) {
    return ErrnoError(errno, absl::StrCat("open ", Quoted(path)));
  }
  sqlite3* connection = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &connection, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  std::unique_ptr<Database> database(new Database(connection, path));  // closes it also after an error
  if (connection == nullptr) { return Error(absl::StatusCode::kResourceExhausted, Reason::kHostLimit, "no memory for SQLite"); }
  if (code != SQLITE_OK) { return DatabaseError(connection, "open"); }
  sqlite3_extended_result_codes(connection, 1);
  sqlite3_busy_timeout(connection, kBusyTimeoutMs);
  FORKD_RETURN_IF_ERROR(database->Execute("PRAGMA journal_mode=WAL"));
  FORKD_RETURN_IF_ERROR(database->Execute("PRAGMA synchronous=NORMAL"));
  FORKD_RETURN_IF_ERROR(database->Migrate(migrations));
  return database;
}

Database::~Database() {
  for (const auto& [sql, statement] : statements_) { sqlite3_finalize(statement); }
  sqlite3_close(connection_);
}

absl::StatusOr<Statement> Database::Prepare(const char* sql) {
  sqlite3_stmt*& statement = statements_[sql];
  if (statement == nullptr && sqlite3_prepare_v3(connection_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr) != SQLITE_OK) {
    return DatabaseError(connection_, sql);
  }
  return Statement(statement);
}

absl::Status Database::Execute(const char* sql) {
  if (sqlite3_exec(connection_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) { return DatabaseError(connection_, sql); }
  return absl::OkStatus();
}

absl::StatusOr<std::int64_t> Database::UserVersion() {
  FORKD_ASSIGN_OR_RETURN(Statement statement, Prepare("PRAGMA user_version"));
  FORKD_ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

absl::Status Database::Migrate(absl::Span<const char* const> migrations) {
  const auto newest = static_cast<std::int64_t>(migrations.size());
  FORKD_ASSIGN_OR_RETURN(const std::int64_t found, UserVersion());
  created_ = found == 0;
  if (found < 0 || found > newest) {
    return Error(absl::StatusCode::kFailedPrecondition, Reason::kRegistry,
                 absl::StrCat("registry ", Quoted(path_), ": has schema version ", found, ", this forkd knows up to ", newest,
                              "; run the forkd that wrote it, or a newer one"));
  }
  for (std::int64_t version = found; version < newest; ++version) {
    // user_version is part of the file's header and so of the transaction.
    const std::string set_version = absl::StrCat("PRAGMA user_version=", version + 1);
    FORKD_RETURN_IF_ERROR(Transaction([&] {
      FORKD_RETURN_IF_ERROR(Execute(migrations[static_cast<std::size_t>(version)]));
      return Execute(set_version.c_str());
    }));
  }
  return absl::OkStatus();
}

}  // namespace forkd::engine
