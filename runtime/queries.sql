-- name: lock_migrations
-- One migrator at a time for the whole database; freed when the session ends, however it ends.
SELECT pg_advisory_lock($1);

-- name: create_schema_migrations
-- The ledger of migrations cannot be a migration itself.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: applied_migrations
-- Read under the lock, so that two starters never apply one file twice.
SELECT version, name, checksum FROM schema_migrations ORDER BY version;

-- name: record_migration
-- In the transaction of the migration itself: applied and recorded, or neither.
INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3);
