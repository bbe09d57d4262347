-- name: advisory_lock
-- One migrator (or creator of the database) at a time; freed when the session ends, however it ends.
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

-- name: missing_database
-- What an embedded server still lacks; no row when it is complete.
SELECT role_missing, database_missing
FROM (
    SELECT NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1) AS role_missing,
           NOT EXISTS (SELECT 1 FROM pg_database WHERE datname = $2) AS database_missing
) AS missing
WHERE role_missing OR database_missing;

-- name: role_statement
-- CREATE ROLE takes no parameters: the server itself quotes them.
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', $1::text, $2::text);

-- name: database_statement
-- CREATE DATABASE takes no parameters either.
SELECT format('CREATE DATABASE %I OWNER %I', $1::text, $2::text);
