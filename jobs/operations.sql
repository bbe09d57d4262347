-- Bulk operations: one row each, worked off in slices by any number of tickers (docs/decisions/0021).
-- A slice reads a bounded number of rows in key order, whatever the filter leaves of them and whatever the planner knows:
-- without statistics it takes a condition or a limit that it cannot see to leave so little that sorting all of it costs
-- nothing. So a row comparison alone and a limit spelled out lead into the index, everything else is applied to
-- what was read, and sorting is made to look dear meanwhile (tests/jobs/test_operations_plans.py).

-- name: accept_operation
INSERT INTO operations (id, tenant_id, action, filter, actor, expected) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING *, as_of::text AS as_of_text;

-- name: get_operation
SELECT *, as_of::text AS as_of_text FROM operations WHERE tenant_id = $1 AND id = $2;

-- name: list_operations
SELECT *, as_of::text AS as_of_text FROM operations
WHERE tenant_id = $1 AND id < $2 AND ($3::text IS NULL OR state = $3) ORDER BY id DESC LIMIT $4;

-- name: stop_operation
-- Waits for the slice that is being done; what was done stays done.
UPDATE operations SET state = 'cancelled', finished_at = coalesce($3, now())
WHERE tenant_id = $1 AND id = $2 AND finished_at IS NULL RETURNING id;

-- name: is_operation_due
-- Asked every second by idle tickers: one statement, no transaction.
SELECT EXISTS (SELECT 1 FROM operations WHERE finished_at IS NULL AND due_at <= coalesce($1, now()));

-- name: take_operation
-- The one that has waited longest, for as long as the transaction lasts.
SELECT *, as_of::text AS as_of_text FROM operations
WHERE finished_at IS NULL AND due_at <= coalesce($1, now()) ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: advance_operation
-- In the transaction of the slice: a crash takes both or none.
UPDATE operations SET
    after_id = coalesce($2, after_id), done = done + $3, skipped = skipped + $4, failed = failed + $5,
    error = coalesce($6, CASE WHEN failed + $5 > 0 THEN error END),
    started_at = coalesce(started_at, $8, now()), due_at = greatest(due_at, coalesce($8, now())),
    state = CASE WHEN NOT $7 THEN 'running' WHEN failed + $5 > 0 THEN 'failed' ELSE 'succeeded' END,
    finished_at = CASE WHEN $7 THEN coalesce($8, now()) END
WHERE id = $1;

-- name: put_off_operation
-- After a slice that was rolled back. Other operations go first meanwhile.
UPDATE operations SET due_at = coalesce($4, now()) + $2::float8 * interval '1 second', error = $3
WHERE id = $1 AND finished_at IS NULL;

-- name: weigh_sorting
-- Until the end of the transaction, or until it is weighed again.
SELECT set_config('enable_sort', $1, true);

-- name: live_slice
-- The jobs behind $2 that match, of the next 2,000 rows, at most $4 of them; where the next slice begins, and whether
-- there is one. $3 names the way in; the state is looked up for rows that match otherwise.
WITH read AS MATERIALIZED (
    SELECT way.* FROM (SELECT WHERE $3 = 'all') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, kind, pool, batch_id, tags, schedule_id, created_at, revived_at,
        last_error ->> 'type' AS error_type
        FROM jobs WHERE (tenant_id, id) > ($1::int, $2::uuid) ORDER BY tenant_id, id LIMIT 2000
    ) AS way
    UNION ALL
    SELECT way.* FROM (SELECT WHERE $3 = 'batch') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, kind, pool, batch_id, tags, schedule_id, created_at, revived_at,
        last_error ->> 'type' AS error_type
        FROM jobs WHERE batch_id IS NOT NULL AND (batch_id, id) > ($9::uuid, $2::uuid) ORDER BY batch_id, id LIMIT 2000
    ) AS way
    UNION ALL
    SELECT way.* FROM (SELECT WHERE $3 = 'ids') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, kind, pool, batch_id, tags, schedule_id, created_at, revived_at,
        last_error ->> 'type' AS error_type
        FROM jobs WHERE id = ANY($13::uuid[]) AND id > $2::uuid ORDER BY id LIMIT 2000
    ) AS way
), own AS MATERIALIZED (
    SELECT * FROM read WHERE tenant_id = $1 AND ($9::uuid IS NULL OR batch_id = $9)
), matching AS MATERIALIZED (
    SELECT id FROM own
    WHERE ($5::timestamptz IS NULL OR coalesce(revived_at, created_at) <= $5)
    AND ($7::text IS NULL OR kind = $7) AND ($8::text IS NULL OR pool = $8)
    AND tags @> $10::text[] AND ($11::text IS NULL OR error_type = $11) AND ($12::uuid IS NULL OR schedule_id = $12)
    AND ($13::uuid[] IS NULL OR id = ANY($13))
    AND ($14::timestamptz IS NULL OR created_at >= $14) AND ($15::timestamptz IS NULL OR created_at < $15)
    AND (cardinality($6::text[]) = 3 OR CASE
        WHEN (SELECT 1 FROM held WHERE job_id = own.id) IS NOT NULL THEN 'running'
        WHEN (SELECT 1 FROM ready WHERE job_id = own.id) IS NOT NULL THEN 'queued'
        ELSE 'scheduled' END = ANY($6))
    ORDER BY id LIMIT $4
)
SELECT ARRAY(SELECT id FROM matching ORDER BY id) AS ids,
    CASE WHEN (SELECT count(*) FROM matching) = $4 THEN (SELECT id FROM matching ORDER BY id DESC LIMIT 1)
         ELSE (SELECT id FROM own ORDER BY id DESC LIMIT 1) END AS after_id,
    (SELECT count(*) FROM matching) < $4 AND (SELECT count(*) FROM own) < 2000 AS is_last;

-- name: finished_slice
-- As live_slice, for terminal jobs. Dead letters have an index of their own; $5 is a snapshot: who ended the job must
-- be visible in it.
WITH read AS MATERIALIZED (
    SELECT way.* FROM (SELECT WHERE $3 = 'dead') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, state, kind, pool, batch_id, tags, schedule_id, created_at, finished_at, discarded_at,
        xid, error ->> 'type' AS error_type
        FROM history WHERE state = 'failed' AND discarded_at IS NULL AND (tenant_id, id) > ($1::int, $2::uuid)
        ORDER BY tenant_id, id LIMIT 2000
    ) AS way
    UNION ALL
    SELECT way.* FROM (SELECT WHERE $3 = 'all') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, state, kind, pool, batch_id, tags, schedule_id, created_at, finished_at, discarded_at,
        xid, error ->> 'type' AS error_type
        FROM history WHERE (tenant_id, id) > ($1::int, $2::uuid) ORDER BY tenant_id, id LIMIT 2000
    ) AS way
    UNION ALL
    SELECT way.* FROM (SELECT WHERE $3 = 'batch') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, state, kind, pool, batch_id, tags, schedule_id, created_at, finished_at, discarded_at,
        xid, error ->> 'type' AS error_type
        FROM history WHERE batch_id IS NOT NULL AND (batch_id, id) > ($9::uuid, $2::uuid)
        ORDER BY batch_id, id LIMIT 2000
    ) AS way
    UNION ALL
    SELECT way.* FROM (SELECT WHERE $3 = 'ids') AS asked CROSS JOIN LATERAL (
        SELECT id, tenant_id, state, kind, pool, batch_id, tags, schedule_id, created_at, finished_at, discarded_at,
        xid, error ->> 'type' AS error_type
        FROM history WHERE tenant_id = $1 AND id = ANY($13::uuid[]) AND id > $2::uuid ORDER BY id LIMIT 2000
    ) AS way
), own AS MATERIALIZED (
    SELECT * FROM read WHERE tenant_id = $1 AND ($9::uuid IS NULL OR batch_id = $9)
), matching AS MATERIALIZED (
    SELECT id FROM own
    WHERE state = ANY($6::text[]) AND discarded_at IS NULL
    AND ($5::text IS NULL OR pg_visible_in_snapshot(xid, $5::text::pg_snapshot))
    AND ($7::text IS NULL OR kind = $7) AND ($8::text IS NULL OR pool = $8)
    AND tags @> $10::text[] AND ($11::text IS NULL OR error_type = $11) AND ($12::uuid IS NULL OR schedule_id = $12)
    AND ($13::uuid[] IS NULL OR id = ANY($13))
    AND ($14::timestamptz IS NULL OR created_at >= $14) AND ($15::timestamptz IS NULL OR created_at < $15)
    AND ($16::timestamptz IS NULL OR finished_at >= $16) AND ($17::timestamptz IS NULL OR finished_at < $17)
    ORDER BY id LIMIT $4
)
SELECT ARRAY(SELECT id FROM matching ORDER BY id) AS ids,
    CASE WHEN (SELECT count(*) FROM matching) = $4 THEN (SELECT id FROM matching ORDER BY id DESC LIMIT 1)
         ELSE (SELECT id FROM own ORDER BY id DESC LIMIT 1) END AS after_id,
    (SELECT count(*) FROM matching) < $4 AND (SELECT count(*) FROM own) < 2000 AS is_last;

-- name: lock_unchanged
-- Those that nobody has retried since the slice was read: a job that came back and ended again meanwhile is another end.
SELECT id FROM history
WHERE tenant_id = $1 AND id = ANY($2::uuid[]) AND discarded_at IS NULL
AND pg_visible_in_snapshot(xid, $3::text::pg_snapshot)
ORDER BY id FOR UPDATE;

-- name: count_dead_letters
-- By the index alone, up to a bound: for the metric.
SELECT count(*) FROM (
    SELECT 1 FROM history WHERE state = 'failed' AND discarded_at IS NULL LIMIT $1
) AS dead;

-- name: prune_operations
DELETE FROM operations WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM operations WHERE finished_at < coalesce($3, now()) - $1::int * interval '1 day' LIMIT $2
    FOR UPDATE SKIP LOCKED));
