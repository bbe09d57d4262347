-- Fills a ledger as years of use would, set by set: what the ledger's verbs write, without their checks.

-- name: hurry
-- Of the filling only; what is measured commits as in production.
SELECT set_config('synchronous_commit', 'off', false), set_config('statement_timeout', '0', false);

-- name: hurry_no_more
RESET ALL;

-- name: make_days
-- The days into which the finished jobs fall.
SELECT create_day_partitions(parent, (now() AT TIME ZONE 'UTC')::date - $1::int, $1::int)
FROM unnest(ARRAY['history', 'attempts', 'events']) AS parent;

-- name: fill_history
-- Jobs $1 to $2 of $3, spread over $4 days; every tenth in one of the batches, every hundredth failed after a retry.
INSERT INTO history (
    tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at, created_at, started_at, max_attempts,
    attempt, failures, losses, tags, batch_id, lineage, on_parent_failure, has_family, slot_id, result, error)
SELECT
    1,
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3) || '8'
        || substr(hash, 4, 15))::uuid,
    at + interval '1 second',
    CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'succeeded' END,
    CASE WHEN n % 5 = 0 THEN 'embed' ELSE 'probe' END, 'probe',
    '{"echo": "a payload of an ordinary size, some hundred bytes or so", "sleep_s": 0}', 4, at, at, at,
    3, 1, (n % 100 = 0)::int, 0,
    CASE WHEN n % 10 = 0 THEN ARRAY['nightly'] ELSE '{}' END,
    CASE WHEN n % 10 = 0 THEN md5('batch ' || n / 10000)::uuid END, '{}', 'run', false, 1,
    '{"echo": "a result"}',
    CASE WHEN n % 100 = 0 THEN '{"type": "broken", "detail": "it broke", "retryable": true}'::jsonb END
FROM (
    SELECT n, md5(n::text) AS hash,
        date_trunc('day', now()) - $4::int * interval '1 day' + n * ($4::int * interval '1 day' / $3::float8) AS at
    FROM generate_series($1::int, $2::int - 1) AS n
) AS finished;

-- name: fill_events
INSERT INTO events (at, tenant_id, type, kind, job_id, batch_id, settled)
SELECT
    at, 1, CASE WHEN n % 100 = 0 THEN 'job.failed' ELSE 'job.succeeded' END, 'probe',
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3) || '8'
        || substr(hash, 4, 15))::uuid,
    CASE WHEN n % 10 = 0 THEN md5('batch ' || n / 10000)::uuid END, true
FROM (
    SELECT n, md5(n::text) AS hash,
        date_trunc('day', now()) - $4::int * interval '1 day' + n * ($4::int * interval '1 day' / $3::float8) AS at
    FROM generate_series($1::int, $2::int - 1) AS n
) AS finished;

-- name: fill_attempts
-- One that failed before for every hundredth job.
INSERT INTO attempts (job_id, attempt, tenant_id, slot_id, started_at, finished_at, outcome)
SELECT id, 0, tenant_id, slot_id, started_at, finished_at, 'retried' FROM history WHERE state = 'failed';

-- name: fill_batches
INSERT INTO batches (id, tenant_id, state, created_at, finished_at)
SELECT md5('batch ' || n)::uuid, 1, 'finished', now() - interval '1 day', now() - interval '1 hour'
FROM generate_series(0, $1::int - 1) AS n;

-- name: fill_batch_counts
INSERT INTO batch_counts (batch_id, writer, total, succeeded)
SELECT id, writer, CASE WHEN writer = 0 THEN 1000 ELSE 0 END, CASE WHEN writer > 0 THEN 250 ELSE 0 END
FROM batches, generate_series(0, 4) AS writer WHERE state = 'finished'
ON CONFLICT DO NOTHING;

-- name: fill_open_batches
-- Batches that run as long as the backlog lasts.
INSERT INTO batches (id, tenant_id, state)
SELECT md5('open ' || n)::uuid, 1, 'running' FROM generate_series(0, $1::int - 1) AS n ON CONFLICT DO NOTHING;

-- name: fill_open_counts
INSERT INTO batch_counts AS c (batch_id, writer, total)
SELECT id, 0, $1 FROM batches WHERE state = 'running'
ON CONFLICT (batch_id, writer) DO UPDATE SET total = c.total + EXCLUDED.total;

-- name: fill_queued
-- Jobs $1 to $2 of the backlog, $3 in each running batch.
WITH new_job AS MATERIALIZED (
    SELECT n, now() - interval '1 hour' + n * interval '1 millisecond' AS at,
        (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 3600000 + n), 12, '0') || '7' || substr(md5(n::text), 1, 3)
            || '9' || substr(md5(n::text), 4, 15))::uuid AS id
    FROM generate_series($1::int, $2::int - 1) AS n
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT id, 'probe', at - interval '4 minutes', 'probe', 1 FROM new_job
)
INSERT INTO jobs (id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at, max_attempts, batch_id)
SELECT id, 1, 'probe', 'probe', '{"echo": "a payload of an ordinary size, some hundred bytes or so"}', 4, at,
    at - interval '4 minutes', at, 3, md5('open ' || n / $3::int)::uuid
FROM new_job;

-- name: fill_parked
-- Jobs that wait for a day which is not today.
WITH new_job AS MATERIALIZED (
    SELECT gen_random_uuid() AS id, now() + interval '10 days' + n * interval '1 second' AS at
    FROM generate_series(1, $1::int) AS n
), parked AS (
    INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id)
    SELECT id, 'delayed', at, at, 'probe', 'probe', 1 FROM new_job
)
INSERT INTO jobs (id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at, max_attempts)
SELECT id, 1, 'probe', 'probe', '{}', 4, at, at, now(), 3 FROM new_job;

-- name: some_finished
SELECT id FROM history TABLESAMPLE SYSTEM (1) ORDER BY random() LIMIT $1;

-- name: some_queued
SELECT job_id FROM ready TABLESAMPLE SYSTEM (10) ORDER BY random() LIMIT $1;

-- name: backlog_batches
-- Those that fill_open_batches made, whatever became of them.
SELECT id FROM batches WHERE id IN (SELECT md5('open ' || n)::uuid FROM generate_series(0, $1::int - 1) AS n);

-- name: sizes
SELECT pg_size_pretty(pg_database_size(current_database()));
