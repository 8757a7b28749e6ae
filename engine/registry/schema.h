// The tables. A migration that has been released is never edited: a change is a new one at the end.
#ifndef FORKD_ENGINE_REGISTRY_SCHEMA_H_
#define FORKD_ENGINE_REGISTRY_SCHEMA_H_

namespace forkd::engine {

inline constexpr const char* kMigrations[] = {
    R"sql(
CREATE TABLE sandboxes (
  id TEXT PRIMARY KEY,
  snapshot_tag TEXT NOT NULL,
  root_tag TEXT NOT NULL,
  state TEXT NOT NULL,
  vmm TEXT NOT NULL,
  accelerator TEXT NOT NULL,
  isolation TEXT NOT NULL,
  pid INTEGER NOT NULL,
  start_time INTEGER NOT NULL,
  run_dir TEXT NOT NULL,
  netns TEXT NOT NULL,
  labels TEXT NOT NULL,
  created_at_unix INTEGER NOT NULL,
  expires_at_unix INTEGER,
  idle_timeout_secs INTEGER,
  memory_limit_mib INTEGER,
  memory_mib INTEGER NOT NULL,
  vcpus INTEGER NOT NULL,
  branch_count INTEGER NOT NULL,
  failure TEXT NOT NULL,
  request_id TEXT NOT NULL,
  generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sandboxes_by_snapshot ON sandboxes (snapshot_tag);
CREATE INDEX sandboxes_by_root ON sandboxes (root_tag);

CREATE TABLE snapshots (
  tag TEXT PRIMARY KEY,
  root_tag TEXT NOT NULL,
  status TEXT NOT NULL,
  kind TEXT NOT NULL,
  parent_tag TEXT,
  branched_from TEXT,
  created_at_unix INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  pause_ms INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  page_count INTEGER NOT NULL,
  physical_bytes INTEGER NOT NULL,
  memory_mib INTEGER NOT NULL,
  vcpus INTEGER NOT NULL,
  image TEXT NOT NULL,
  captured TEXT NOT NULL,
  warning TEXT NOT NULL,
  labels TEXT NOT NULL,
  request_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_by_parent ON snapshots (parent_tag);
CREATE INDEX snapshots_by_root ON snapshots (root_tag);

-- result is NULL while the call runs.
CREATE TABLE idempotency (
  key TEXT PRIMARY KEY,
  method TEXT NOT NULL,
  fingerprint BLOB NOT NULL,
  result BLOB,
  created_at_unix INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_at_unix);
)sql",
};

}  // namespace forkd::engine

#endif  // FORKD_ENGINE_REGISTRY_SCHEMA_H_
