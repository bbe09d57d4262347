-- name: wal_position
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn;

-- name: durability
-- What the run prints, so that nobody has to believe that commits were synchronous.
SELECT name, setting FROM pg_settings
WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'shared_buffers', 'server_version',
    'data_checksums')
ORDER BY name;

-- name: drop_database_statement
-- Names cannot be parameters of the statement itself.
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', $1::text);

-- name: create_database_statement
SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE %I', $1::text, $2::text, $3::text);

-- name: checkpoint
-- Each repetition then pays for its own full page images, and for none of another's.
CHECKPOINT;

-- name: analyze
-- After the enqueue: nobody's plan is a guess about a table that was empty a second ago.
ANALYZE;

-- name: failed_attempts
-- What a shutdown must not cause: attempts that count against a job, and jobs that failed.
SELECT (SELECT count(*) FROM attempts WHERE outcome IN ('failed', 'retried', 'lost'))
    + (SELECT count(*) FROM history WHERE state <> 'succeeded');

-- name: live_in_batches
SELECT count(*) FROM jobs WHERE batch_id = ANY($1::uuid[]);

-- name: ended_in_batches
-- When each job ended, by the clock that stamps its events: that of the transaction's beginning.
SELECT batch_id, array_agg(extract(epoch FROM finished_at)::float8 ORDER BY finished_at) AS ended
FROM history WHERE batch_id = ANY($1::uuid[]) GROUP BY batch_id;
