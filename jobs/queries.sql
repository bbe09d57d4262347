-- The life of a job in SQL, in the order in which it happens. Traps that the shapes below avoid:
--   * `id = ANY(ARRAY(...))` and `ctid = ANY(ARRAY(...))` keep to the primary key (or to no index at all) whatever
--     the statistics say; joins to a big table would read all of it when they are stale (tests/jobs/test_plans.py).
--   * A statement's snapshot is older than the lock it waited for. Where that matters, the lock and the reading are
--     two statements.
--   * Every multi-row lock is taken in the order of its key.

-- name: find_custom_ids
-- A custom_id names one job of a batch for good: of live jobs the unique index says so, of finished ones this.
SELECT custom_id, id FROM jobs WHERE batch_id = $1 AND custom_id = ANY($2::text[]) AND parent_id IS NULL
UNION ALL
SELECT custom_id, id FROM history WHERE batch_id = $1 AND custom_id = ANY($2::text[]) AND parent_id IS NULL;

-- name: lock_parents
-- The flag makes a finishing parent look for dependents; the row's lock makes one of the two wait for the other.
WITH parents AS MATERIALIZED (
    SELECT id FROM jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[]) ORDER BY id FOR NO KEY UPDATE
)
UPDATE jobs SET has_dependents = true WHERE id = ANY(ARRAY(SELECT id FROM parents)) RETURNING id;

-- name: finished_parents
-- After lock_parents, so that a parent which ended while it waited is seen here.
SELECT id, state FROM history WHERE tenant_id = $1 AND id = ANY($2::uuid[]);

-- name: mark_dependents
UPDATE jobs SET has_dependents = true WHERE id = ANY($1::uuid[]);

-- name: add_dependencies
INSERT INTO dependencies (parent_id, job_id) SELECT * FROM unnest($1::uuid[], $2::uuid[]) ON CONFLICT DO NOTHING;

-- name: take_unique_keys
-- Answers the keys that are now ours. A conflicting row stays locked until we commit, so its holder can be read next.
INSERT INTO unique_keys AS held_by (tenant_id, key, job_id, until, expires_at)
SELECT $1, key, job_id, until, coalesce($6, now()) + for_s * interval '1 second'
FROM unnest($2::text[], $3::uuid[], $4::text[], $5::float8[]) AS wanted (key, job_id, until, for_s)
ORDER BY key
ON CONFLICT (tenant_id, key) DO UPDATE
SET job_id = EXCLUDED.job_id, until = EXCLUDED.until, expires_at = EXCLUDED.expires_at
WHERE held_by.expires_at <= coalesce($6, now())
RETURNING key;

-- name: unique_holders
SELECT key, job_id FROM unique_keys WHERE tenant_id = $1 AND key = ANY($2::text[]);

-- name: release_unique_keys
-- What a job held until it was finished; a key held for a time outlives it.
DELETE FROM unique_keys
WHERE ctid = ANY(ARRAY(
    SELECT u.ctid FROM unnest($1::int[], $2::text[]) AS k (tenant_id, key)
    CROSS JOIN LATERAL (SELECT ctid FROM unique_keys WHERE tenant_id = k.tenant_id AND key = k.key OFFSET 0) AS u))
AND job_id = ANY($3::uuid[]) AND until <> 'time';

-- name: job_states
SELECT id, kind, pool, state FROM live_jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[])
UNION ALL
SELECT id, kind, pool, state FROM finished_jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[]);

-- name: insert_jobs
-- A job goes to `ready` unless something holds it back; answers only those that were parked.
WITH wanted AS MATERIALIZED (
    SELECT
        id, kind, pool, payload, priority,
        coalesce(run_at, coalesce($1, now()) + coalesce(delay_s, 0) * interval '1 second') AS run_at,
        expires_at, timeout_s, max_attempts,
        CASE WHEN tags IS NULL THEN '{}' ELSE ARRAY(SELECT jsonb_array_elements_text(tags::jsonb)) END AS tags,
        custom_id, schedule_id, callback_url, unique_key, unique_until, concurrency_key, pending_parents,
        on_parent_failure
    FROM unnest(
        $8::uuid[], $9::text[], $10::text[], $11::jsonb[], $12::int2[], $13::timestamptz[], $14::float8[],
        $15::timestamptz[], $16::float8[], $17::int2[], $18::text[], $19::text[], $20::uuid[], $21::text[],
        $22::text[], $23::text[], $24::text[], $25::int[], $26::text[]
    ) AS new_job (
        id, kind, pool, payload, priority, run_at, delay_s, expires_at, timeout_s, max_attempts, tags, custom_id,
        schedule_id, callback_url, unique_key, unique_until, concurrency_key, pending_parents, on_parent_failure
    )
), placed AS MATERIALIZED (
    SELECT *,
        run_at - priority * $2::float8 * interval '1 second' AS sort_at,
        CASE
            WHEN pending_parents > 0 THEN 'dependency'
            WHEN run_at > coalesce($1, now()) THEN 'delayed'
            WHEN concurrency_key IS NOT NULL THEN 'limit'
        END AS reason
    FROM wanted
), kept AS (
    INSERT INTO jobs (
        id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at, expires_at, timeout_s, max_attempts,
        tags, custom_id, batch_id, parent_id, root_id, lineage, schedule_id, callback_url, unique_key, unique_until,
        concurrency_key, pending_parents, on_parent_failure)
    SELECT
        id, $3::int, kind, pool, payload, priority, run_at, sort_at, coalesce($1, now()), expires_at, timeout_s,
        max_attempts, tags, custom_id, $4::uuid, $5::uuid, $6::uuid, $7::uuid[], schedule_id, callback_url,
        unique_key, unique_until, concurrency_key, pending_parents, on_parent_failure
    FROM placed
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT id, pool, sort_at, kind, $3::int FROM placed WHERE reason IS NULL
), parked AS (
    INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id, concurrency_key, batch_id, follow_up)
    SELECT id, reason, run_at, sort_at, pool, kind, $3::int, concurrency_key, $4::uuid, $5::uuid IS NOT NULL
    FROM placed WHERE reason IS NOT NULL
)
SELECT id, reason FROM placed WHERE reason IS NOT NULL;

-- name: transaction_time
-- The time that all rows of a COPY carry, which has no expressions of its own.
SELECT now();

-- name: add_to_families
-- Every ancestor of new follow-ups waits for them before it is settled.
INSERT INTO families AS f (job_id, tenant_id, root_id, open, total)
SELECT ancestor, $2, ($1::uuid[])[1], $3, $3 FROM unnest($1::uuid[]) AS ancestor ORDER BY ancestor
ON CONFLICT (job_id) DO UPDATE SET open = f.open + EXCLUDED.open, total = f.total + EXCLUDED.total, settled_at = NULL;

-- name: mark_family
-- Locks the parent's row before any key, and says whether somebody wants it cancelled.
UPDATE jobs SET has_family = true WHERE id = $1 RETURNING cancel_requested_at;

-- name: add_batch_counts
-- Deltas of one writer, in the order of the batches.
INSERT INTO batch_counts AS c (
    batch_id, writer, total, scheduled, succeeded, failed, cancelled,
    follow_total, follow_scheduled, follow_succeeded, follow_failed, follow_cancelled)
SELECT batch_id, $1, total, scheduled, succeeded, failed, cancelled,
    follow_total, follow_scheduled, follow_succeeded, follow_failed, follow_cancelled
FROM unnest($2::uuid[], $3::int[], $4::int[], $5::int[], $6::int[], $7::int[], $8::int[], $9::int[], $10::int[],
    $11::int[], $12::int[])
AS d (batch_id, total, scheduled, succeeded, failed, cancelled,
    follow_total, follow_scheduled, follow_succeeded, follow_failed, follow_cancelled)
ORDER BY batch_id
ON CONFLICT (batch_id, writer) DO UPDATE SET
    total = c.total + EXCLUDED.total,
    scheduled = c.scheduled + EXCLUDED.scheduled,
    succeeded = c.succeeded + EXCLUDED.succeeded,
    failed = c.failed + EXCLUDED.failed,
    cancelled = c.cancelled + EXCLUDED.cancelled,
    follow_total = c.follow_total + EXCLUDED.follow_total,
    follow_scheduled = c.follow_scheduled + EXCLUDED.follow_scheduled,
    follow_succeeded = c.follow_succeeded + EXCLUDED.follow_succeeded,
    follow_failed = c.follow_failed + EXCLUDED.follow_failed,
    follow_cancelled = c.follow_cancelled + EXCLUDED.follow_cancelled;

-- name: make_limits
-- A key nobody has limited lets one job run at a time.
INSERT INTO limits (tenant_id, key) SELECT DISTINCT * FROM unnest($1::int[], $2::text[]) ORDER BY 1, 2
ON CONFLICT DO NOTHING;

-- name: lock_limits
-- A statement of its own: what the previous holder of these locks promoted must be seen by the next statement.
-- Locked within the LATERAL: key by key in their order, whatever the planner believes.
SELECT l.tenant_id, l.key, l.concurrency, l.in_use
FROM (SELECT DISTINCT * FROM unnest($1::int[], $2::text[]) AS k (tenant_id, key) ORDER BY 1, 2) AS k
CROSS JOIN LATERAL (
    SELECT * FROM limits WHERE tenant_id = k.tenant_id AND key = k.key FOR NO KEY UPDATE
) AS l;

-- name: promote_permitted
-- The first jobs that wait for each key, as many as it has permits. A row that somebody else holds is on its way out.
WITH permitted AS MATERIALIZED (
    SELECT p.job_id
    FROM unnest($1::int[], $2::text[], $3::int[]) AS k (tenant_id, key, permits)
    CROSS JOIN LATERAL (
        SELECT job_id FROM parked
        WHERE reason = 'limit' AND tenant_id = k.tenant_id AND concurrency_key = k.key
        ORDER BY sort_at, job_id LIMIT k.permits FOR UPDATE SKIP LOCKED
    ) AS p
), moved AS (
    DELETE FROM parked WHERE job_id = ANY(ARRAY(SELECT job_id FROM permitted)) RETURNING *
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id, alone)
    SELECT job_id, pool, sort_at, kind, tenant_id, alone FROM moved
)
SELECT job_id, pool, tenant_id, concurrency_key AS key, batch_id, follow_up FROM moved;

-- name: release_permits
-- Takes permits back. The update is the lock, in the order of the keys, and whoever waited for it reads what the last
-- holder did; what that one parked is seen by the next statement. Equality would let the planner hash the keys and lock
-- in the order of the table, and two writers with the same keys wait for each other; pairs leave it the index only.
UPDATE limits AS l SET in_use = greatest(0, l.in_use - d.permits)
FROM (SELECT * FROM unnest($1::int[], $2::text[], $3::int[]) AS k (tenant_id, key, permits) ORDER BY 1, 2) AS d
WHERE (l.tenant_id, l.key) >= (d.tenant_id, d.key) AND (l.tenant_id, l.key) <= (d.tenant_id, d.key);

-- name: take_returned
-- Permits to be counted, by key. Any number may: each takes other rows.
WITH taken AS MATERIALIZED (
    DELETE FROM returned_permits WHERE id = ANY(ARRAY(
        SELECT id FROM returned_permits ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING tenant_ids, keys, permits
)
SELECT r.tenant_id, r.key, sum(r.permits)::int AS permits
FROM taken AS t CROSS JOIN LATERAL unnest(t.tenant_ids, t.keys, t.permits) AS r (tenant_id, key, permits)
GROUP BY r.tenant_id, r.key;

-- name: waited_for_limits
-- Those of the keys, locked by the caller, that jobs wait for, and the permits that each has left.
SELECT k.tenant_id, k.key, l.concurrency - l.in_use AS permits
FROM unnest($1::int[], $2::text[]) AS k (tenant_id, key)
CROSS JOIN LATERAL (
    SELECT 1 FROM parked WHERE reason = 'limit' AND tenant_id = k.tenant_id AND concurrency_key = k.key LIMIT 1
) AS waiting
CROSS JOIN LATERAL (
    SELECT concurrency, in_use FROM limits WHERE tenant_id = k.tenant_id AND key = k.key OFFSET 0
) AS l;

-- name: add_permits
-- To keys that the caller has locked. The arrays, said once more, lead into the index.
UPDATE limits AS l SET in_use = l.in_use + d.permits
FROM unnest($1::int[], $2::text[], $3::int[]) AS d (tenant_id, key, permits)
WHERE l.tenant_id = d.tenant_id AND l.key = d.key AND l.tenant_id = ANY($1::int[]) AND l.key = ANY($2::text[]);

-- name: claim
-- One statement: the slot's row is locked first (declaring its death takes the same row FOR UPDATE), so that no job is
-- given to a dead slot. No row at all says that the slot is dead; a row of nulls, that nothing is to be had.
-- The CASE hides its conditions from the planner, and the pairs bound the index without saying `pool = `: without
-- statistics it would take those to leave a few rows, and read and sort the whole backlog to find them, instead of
-- following the index until the limit. From $6 on: see Head in jobs/claim.py.
WITH slot AS MATERIALIZED (
    SELECT id FROM slots WHERE id = $1 AND ended_at IS NULL FOR KEY SHARE
), open_pool AS MATERIALIZED (
    SELECT 1 FROM slot
    WHERE NOT EXISTS (SELECT 1 FROM pools WHERE name = $2 AND paused_at IS NOT NULL)
), suspect AS MATERIALIZED (
    SELECT ctid AS place, job_id FROM ready
    WHERE $5 AND alone AND pool = $2 AND kind = ANY($3::text[]) AND EXISTS (SELECT 1 FROM open_pool)
    ORDER BY sort_at, job_id LIMIT 1 FOR UPDATE SKIP LOCKED
), picked AS MATERIALIZED (
    SELECT ctid AS place, job_id FROM ready
    WHERE (pool, sort_at) >= ($2, coalesce($6, '-infinity'::timestamptz))
    AND (pool, sort_at) <= ($2, 'infinity'::timestamptz)
    AND CASE WHEN alone THEN false ELSE kind = ANY($3::text[]) END
    AND EXISTS (SELECT 1 FROM open_pool) AND NOT EXISTS (SELECT 1 FROM suspect)
    ORDER BY pool, sort_at, job_id LIMIT $4 FOR UPDATE SKIP LOCKED
), chosen AS MATERIALIZED (
    SELECT place, job_id, true AS alone FROM suspect UNION ALL SELECT place, job_id, false FROM picked
), taken AS (
    DELETE FROM ready WHERE ctid = ANY(ARRAY(SELECT place FROM chosen))
), job AS MATERIALIZED (
    SELECT id, tenant_id, kind, payload, nextval('attempt_tokens') AS token, attempt + 1 AS attempt, max_attempts,
        failures, losses, timeout_s, clock_timestamp() AS claimed_at, batch_id, parent_id, lineage, sort_at,
        unique_key, unique_until, extract(epoch FROM clock_timestamp() - run_at)::float8 AS queued_s
    FROM jobs WHERE id = ANY(ARRAY(SELECT job_id FROM chosen))
), hold AS (
    INSERT INTO held (job_id, slot_id, token, attempt, claimed_at, tenant_id, batch_id, follow_up)
    SELECT id, $1, token, attempt, claimed_at, tenant_id, batch_id, parent_id IS NOT NULL FROM job
), started_keys AS (
    DELETE FROM unique_keys WHERE ctid = ANY(ARRAY(
        SELECT u.ctid FROM job CROSS JOIN LATERAL (
            SELECT ctid FROM unique_keys
            WHERE tenant_id = job.tenant_id AND key = job.unique_key AND job_id = job.id AND until = 'started' LIMIT 1
        ) AS u WHERE job.unique_until = 'started'))
)
SELECT job.id, job.tenant_id, job.kind, job.payload, job.token, job.attempt, job.max_attempts, job.failures, job.losses,
    job.timeout_s, job.claimed_at, job.batch_id, job.parent_id, nullif(job.lineage, '{}') AS lineage, EXISTS (SELECT 1 FROM suspect) AS alone,
    job.queued_s, job.sort_at
FROM slot LEFT JOIN job ON true ORDER BY job.sort_at, job.id;

-- name: assert_held
SELECT 1 FROM held WHERE job_id = $1 AND token = $2 FOR SHARE;

-- name: lock_held_jobs
-- The jobs of these attempts that are still held, locked before any key is touched.
WITH fenced AS MATERIALIZED (
    SELECT job_id FROM held WHERE job_id = ANY($1::uuid[]) AND token = ANY($2::bigint[]) ORDER BY job_id FOR UPDATE
)
SELECT id, cancel_requested_at FROM jobs WHERE id = ANY(ARRAY(SELECT job_id FROM fenced)) ORDER BY id FOR NO KEY UPDATE;

-- name: finish_held
-- The end of attempts and of their jobs: fence, move, tell, count, in one statement. A token is given once, so
-- matching ids and tokens as two sets is exact. Answers the jobs to which more is tied, in one row at least, the permits
-- to be given back, and which jobs moved if not all did. An array of nothing but its default may be left empty.
-- Permits of a key that seems to have plenty left are returned here, without its lock, to be counted later.
WITH ended AS MATERIALIZED (
    SELECT id, coalesce(state, 'succeeded') AS state, waited_s, result, error
    FROM unnest($3::uuid[], $5::text[], $6::float8[], $7::text[], $8::text[])
        AS e (id, state, waited_s, result, error)
), let_go AS (
    DELETE FROM held WHERE job_id = ANY($3::uuid[]) AND token = ANY($4::bigint[])
    RETURNING job_id, attempt, claimed_at
), moved AS (
    DELETE FROM jobs WHERE id = ANY(ARRAY(SELECT job_id FROM let_go)) RETURNING *
), kept AS (
    INSERT INTO history (
        tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at, created_at, started_at, expires_at,
        timeout_s, max_attempts, attempt, failures, losses, tags, custom_id, batch_id, parent_id, root_id, lineage,
        schedule_id, callback_url, unique_key, unique_until, concurrency_key, on_parent_failure, cancel_requested_at,
        has_family, slot_id, result, error)
    SELECT
        m.tenant_id, m.id, coalesce($2, now()), e.state, m.kind, m.pool, m.payload, m.priority, m.run_at, m.created_at,
        l.claimed_at + e.waited_s * interval '1 second', m.expires_at, m.timeout_s, m.max_attempts, l.attempt,
        m.failures + (e.state = 'failed')::int, m.losses, m.tags, m.custom_id, m.batch_id, m.parent_id, m.root_id,
        m.lineage, m.schedule_id, m.callback_url, m.unique_key, m.unique_until, m.concurrency_key, m.on_parent_failure,
        m.cancel_requested_at, m.has_family, $1, e.result::jsonb, e.error::jsonb
    FROM moved AS m JOIN let_go AS l ON l.job_id = m.id JOIN ended AS e ON e.id = m.id
    RETURNING tenant_id, id, finished_at, state, kind, batch_id, parent_id, has_family
), told AS (
    INSERT INTO events (at, tenant_id, type, kind, job_id, batch_id, settled)
    SELECT finished_at, tenant_id, 'job.' || state, kind, id, batch_id, NOT has_family FROM kept
), permits AS (
    SELECT tenant_id, concurrency_key AS key, count(*)::int AS jobs FROM moved WHERE concurrency_key IS NOT NULL
    GROUP BY tenant_id, concurrency_key
), weighed AS MATERIALIZED (
    SELECT p.tenant_id, p.key, p.jobs, coalesce(l.is_ample, false) AS is_ample
    FROM permits AS p LEFT JOIN LATERAL (
        SELECT concurrency - in_use >= greatest(4, concurrency / 8) AS is_ample FROM limits
        WHERE tenant_id = p.tenant_id AND key = p.key OFFSET 0
    ) AS l ON true
), returned AS (
    INSERT INTO returned_permits (tenant_ids, keys, permits)
    SELECT array_agg(tenant_id), array_agg(key), array_agg(jobs) FROM weighed WHERE is_ample HAVING count(*) > 0
), counted AS (
    INSERT INTO batch_counts AS c (
        batch_id, writer, succeeded, failed, cancelled, follow_succeeded, follow_failed, follow_cancelled)
    SELECT
        batch_id, $1,
        count(*) FILTER (WHERE state = 'succeeded' AND parent_id IS NULL),
        count(*) FILTER (WHERE state = 'failed' AND parent_id IS NULL),
        count(*) FILTER (WHERE state = 'cancelled' AND parent_id IS NULL),
        count(*) FILTER (WHERE state = 'succeeded' AND parent_id IS NOT NULL),
        count(*) FILTER (WHERE state = 'failed' AND parent_id IS NOT NULL),
        count(*) FILTER (WHERE state = 'cancelled' AND parent_id IS NOT NULL)
    FROM kept WHERE batch_id IS NOT NULL GROUP BY batch_id ORDER BY batch_id
    ON CONFLICT (batch_id, writer) DO UPDATE SET
        succeeded = c.succeeded + EXCLUDED.succeeded,
        failed = c.failed + EXCLUDED.failed,
        cancelled = c.cancelled + EXCLUDED.cancelled,
        follow_succeeded = c.follow_succeeded + EXCLUDED.follow_succeeded,
        follow_failed = c.follow_failed + EXCLUDED.follow_failed,
        follow_cancelled = c.follow_cancelled + EXCLUDED.follow_cancelled
)
SELECT
    CASE WHEN (SELECT count(*) FROM let_go) < cardinality($3::uuid[]) THEN ARRAY(SELECT job_id FROM let_go) END AS moved,
    held.tenants, held.keys, held.permits, held.has_returned,
    tied.id, tied.tenant_id, tied.unique_key, tied.has_dependents, tied.has_family, tied.lineage, tied.callback_url
FROM (
    SELECT array_agg(tenant_id) FILTER (WHERE NOT is_ample) AS tenants,
        array_agg(key) FILTER (WHERE NOT is_ample) AS keys,
        array_agg(jobs) FILTER (WHERE NOT is_ample) AS permits,
        bool_or(is_ample) AS has_returned
    FROM weighed
) AS held LEFT JOIN (
    SELECT * FROM moved
    WHERE unique_key IS NOT NULL OR has_dependents OR has_family
    OR cardinality(lineage) > 0 OR callback_url IS NOT NULL
) AS tied ON true;

-- name: back_off
-- A failed attempt with budget left waits for its next one; unless somebody asked to cancel the job meanwhile, which
-- the row's lock decides. Answers the jobs that were parked.
WITH fenced AS MATERIALIZED (
    SELECT job_id FROM held WHERE job_id = ANY($3::uuid[]) AND token = ANY($4::bigint[]) ORDER BY job_id FOR UPDATE
), spent AS (
    UPDATE jobs SET attempt = attempt + 1, failures = failures + 1,
        last_error = ($6::jsonb[])[array_position($3::uuid[], id)]
    WHERE id = ANY(ARRAY(SELECT job_id FROM fenced)) AND cancel_requested_at IS NULL
    RETURNING *
), let_go AS (
    DELETE FROM held WHERE job_id = ANY(ARRAY(SELECT id FROM spent)) RETURNING job_id, claimed_at
), waiting AS (
    INSERT INTO parked (
        job_id, reason, run_at, sort_at, pool, kind, tenant_id, alone, concurrency_key, batch_id, follow_up)
    SELECT id, 'backoff',
        coalesce($2, now()) + ($7::float8[])[array_position($3::uuid[], id)] * interval '1 second',
        coalesce($2, now()) + ($7::float8[])[array_position($3::uuid[], id)] * interval '1 second' + (sort_at - run_at),
        pool, kind, tenant_id, losses >= 2, concurrency_key, batch_id, parent_id IS NOT NULL
    FROM spent
), remembered AS (
    INSERT INTO attempts (job_id, attempt, tenant_id, slot_id, started_at, finished_at, outcome, error)
    SELECT s.id, s.attempt, s.tenant_id, $1,
        l.claimed_at + ($5::float8[])[array_position($3::uuid[], s.id)] * interval '1 second',
        coalesce($2, now()), 'retried', s.last_error
    FROM spent AS s JOIN let_go AS l ON l.job_id = s.id
)
SELECT id, tenant_id, concurrency_key, batch_id, parent_id IS NOT NULL AS follow_up FROM spent;

-- name: give_back
-- An attempt given back: the job is queued again where it stood, its budget whole; a suspect (`lost`) pays a life.
-- It keeps its permit. Answers the jobs that were queued.
WITH fenced AS MATERIALIZED (
    SELECT job_id FROM held WHERE job_id = ANY($3::uuid[]) AND token = ANY($4::bigint[]) ORDER BY job_id FOR UPDATE
), given_back AS (
    UPDATE jobs SET attempt = attempt + 1, losses = losses + ($6 = 'lost')::int
    WHERE id = ANY(ARRAY(SELECT job_id FROM fenced)) AND cancel_requested_at IS NULL
    RETURNING *
), let_go AS (
    DELETE FROM held WHERE job_id = ANY(ARRAY(SELECT id FROM given_back)) RETURNING job_id, claimed_at
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id, alone)
    SELECT id, pool, sort_at, kind, tenant_id, losses >= 2 FROM given_back
), remembered AS (
    INSERT INTO attempts (job_id, attempt, tenant_id, slot_id, started_at, finished_at, outcome, error)
    SELECT g.id, g.attempt, g.tenant_id, $1,
        l.claimed_at + ($5::float8[])[array_position($3::uuid[], g.id)] * interval '1 second',
        coalesce($2, now()), $6, ($7::jsonb[])[array_position($3::uuid[], g.id)]
    FROM given_back AS g JOIN let_go AS l ON l.job_id = g.id
)
SELECT id, pool FROM given_back;

-- name: finish_waiting
-- The end of jobs that nobody holds. Whatever is held, or moves between the narrow tables this moment, is left out:
-- compare the answer and ask again.
WITH ended AS MATERIALIZED (
    SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[]) AS e (id, state, error)
), unparked AS (
    DELETE FROM parked WHERE job_id = ANY($2::uuid[]) RETURNING job_id
), unqueued AS (
    DELETE FROM ready WHERE job_id = ANY($2::uuid[]) RETURNING job_id
), moved AS (
    DELETE FROM jobs
    WHERE id = ANY(ARRAY(SELECT job_id FROM unparked UNION ALL SELECT job_id FROM unqueued)) RETURNING *
), kept AS (
    INSERT INTO history (
        tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at, created_at, started_at, expires_at,
        timeout_s, max_attempts, attempt, failures, losses, tags, custom_id, batch_id, parent_id, root_id, lineage,
        schedule_id, callback_url, unique_key, unique_until, concurrency_key, on_parent_failure, cancel_requested_at,
        has_family, error)
    SELECT
        m.tenant_id, m.id, coalesce($1, now()), e.state, m.kind, m.pool, m.payload, m.priority, m.run_at, m.created_at,
        NULL, m.expires_at, m.timeout_s, m.max_attempts, m.attempt, m.failures, m.losses, m.tags, m.custom_id,
        m.batch_id, m.parent_id, m.root_id, m.lineage, m.schedule_id, m.callback_url, m.unique_key, m.unique_until,
        m.concurrency_key, m.on_parent_failure,
        CASE WHEN e.state = 'cancelled' THEN coalesce(m.cancel_requested_at, $1, now()) END,
        m.has_family, e.error::jsonb
    FROM moved AS m JOIN ended AS e ON e.id = m.id
    RETURNING tenant_id, id, finished_at, state, kind, batch_id, has_family
), told AS (
    INSERT INTO events (at, tenant_id, type, kind, job_id, batch_id, settled)
    SELECT finished_at, tenant_id, 'job.' || state, kind, id, batch_id, NOT has_family FROM kept
)
SELECT m.id, m.tenant_id, e.state, m.unique_key, m.concurrency_key, m.has_dependents, m.has_family, m.lineage,
    m.callback_url, m.batch_id, m.parent_id IS NOT NULL AS follow_up,
    EXISTS (SELECT 1 FROM unparked AS u WHERE u.job_id = m.id) AS was_parked
FROM moved AS m JOIN ended AS e ON e.id = m.id;

-- name: waiting_jobs
SELECT job_id FROM ready WHERE job_id = ANY($1::uuid[])
UNION ALL
SELECT job_id FROM parked WHERE job_id = ANY($1::uuid[]);

-- name: lock_dependents
-- Who waits for these parents: locked before the edges, since cancelling a job holds its row already.
SELECT id, on_parent_failure FROM jobs
WHERE id = ANY(ARRAY(
    SELECT d.job_id FROM unnest($1::uuid[]) AS p (id)
    CROSS JOIN LATERAL (SELECT job_id FROM dependencies WHERE parent_id = p.id OFFSET 0) AS d))
ORDER BY id FOR NO KEY UPDATE;

-- name: drop_dependencies
DELETE FROM dependencies WHERE ctid = ANY(ARRAY(
    SELECT d.place FROM unnest($1::uuid[]) AS p (id)
    CROSS JOIN LATERAL (SELECT ctid AS place FROM dependencies WHERE parent_id = p.id OFFSET 0) AS d))
RETURNING parent_id, job_id;

-- name: count_down_parents
-- Answers those whose last parent is done.
UPDATE jobs SET pending_parents = pending_parents - ($2::int[])[array_position($1::uuid[], id)]
WHERE id = ANY($1::uuid[]) AND pending_parents > 0 RETURNING id, pending_parents = 0 AS is_free;

-- name: unpark
-- Parked jobs that nothing but their time or their key's limit may hold back any longer.
WITH free AS MATERIALIZED (
    SELECT job_id FROM parked WHERE job_id = ANY($1::uuid[]) ORDER BY job_id FOR UPDATE
), moved AS (
    DELETE FROM parked WHERE job_id = ANY(ARRAY(SELECT job_id FROM free))
    AND run_at <= coalesce($2, now()) AND concurrency_key IS NULL
    RETURNING *
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id, alone)
    SELECT job_id, pool, sort_at, kind, tenant_id, alone FROM moved
), still_parked AS (
    UPDATE parked SET reason = CASE WHEN run_at > coalesce($2, now()) THEN 'delayed' ELSE 'limit' END
    WHERE job_id = ANY(ARRAY(SELECT job_id FROM free))
    AND (run_at > coalesce($2, now()) OR concurrency_key IS NOT NULL)
    RETURNING *
)
SELECT job_id, pool, tenant_id, NULL AS key, batch_id, follow_up FROM moved
UNION ALL
SELECT job_id, pool, tenant_id, concurrency_key, batch_id, follow_up FROM still_parked WHERE reason = 'limit';

-- name: lock_families
SELECT job_id FROM families WHERE job_id = ANY($1::uuid[]) ORDER BY job_id FOR NO KEY UPDATE;

-- name: change_families
-- Deltas of descendants that ended (or live again), and whether the job itself ended. Answers what settled by it.
UPDATE families AS f SET
    open = f.open + d.open,
    succeeded = f.succeeded + d.succeeded,
    failed = f.failed + d.failed,
    cancelled = f.cancelled + d.cancelled,
    ended = (f.ended OR d.ended) AND NOT d.reopened,
    settled_at = CASE WHEN (f.ended OR d.ended) AND NOT d.reopened AND f.open + d.open = 0 THEN coalesce($1, now()) END
FROM unnest($2::uuid[], $3::int[], $4::int[], $5::int[], $6::int[], $7::bool[], $8::bool[])
    AS d (job_id, open, succeeded, failed, cancelled, ended, reopened)
WHERE f.job_id = d.job_id
RETURNING f.job_id, f.settled_at IS NOT NULL AS is_settled;

-- name: tell_settled
-- Families that settled after their job ended have an event of their own.
INSERT INTO events (at, tenant_id, type, kind, job_id, batch_id)
SELECT coalesce($2, now()), tenant_id, 'job.settled', kind, id, batch_id FROM history
WHERE tenant_id = ANY($3::int[]) AND id = ANY($1::uuid[]) ORDER BY id;

-- name: owe_callbacks
INSERT INTO outbox (tenant_id, url, type, occurred_at, data, due_at)
SELECT tenant_id, callback_url, 'job.settled', coalesce($2, now()),
    jsonb_build_object(
        'id', id, 'kind', kind, 'state', state, 'custom_id', custom_id, 'batch_id', batch_id, 'tags', to_jsonb(tags),
        'attempt', attempt, 'created_at', created_at, 'finished_at', finished_at, 'error', error),
    coalesce($2, now())
FROM history WHERE tenant_id = ANY($3::int[]) AND id = ANY($1::uuid[]) AND callback_url IS NOT NULL;

-- name: promote_due
-- Any number of sweepers: each takes other rows. Jobs with a key wait for its permit from now on. The CASE keeps the
-- planner from reading all that wait with a key.
WITH due AS MATERIALIZED (
    SELECT job_id FROM parked WHERE reason IN ('delayed', 'backoff') AND run_at <= coalesce($2, now())
    ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM parked WHERE job_id = ANY(ARRAY(SELECT job_id FROM due)) AND concurrency_key IS NULL RETURNING *
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id, alone)
    SELECT job_id, pool, sort_at, kind, tenant_id, alone FROM moved
), limited AS (
    UPDATE parked SET reason = 'limit'
    WHERE job_id = ANY(ARRAY(SELECT job_id FROM due)) AND CASE WHEN concurrency_key IS NULL THEN false ELSE true END
    RETURNING *
)
SELECT job_id, pool, tenant_id, NULL AS key, batch_id, follow_up FROM moved
UNION ALL
SELECT job_id, pool, tenant_id, concurrency_key, batch_id, follow_up FROM limited;

-- name: lock_expired
-- Waiting jobs past their time; one that runs has met it.
SELECT id FROM jobs
WHERE expires_at <= coalesce($2, now()) AND (SELECT true FROM held WHERE job_id = jobs.id) IS NULL
ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED;

-- name: lock_for_cancel
-- The live ones of the jobs asked for and of all that they created, which are of the same tenant.
WITH roots AS (
    SELECT coalesce(root_id, id) AS id FROM jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[])
    UNION
    SELECT coalesce(root_id, id) FROM history WHERE tenant_id = $1 AND id = ANY($2::uuid[])
), chosen AS (
    SELECT id FROM jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[])
    UNION
    SELECT own.id FROM roots
    CROSS JOIN LATERAL (SELECT id, lineage FROM jobs WHERE root_id = roots.id OFFSET 0) AS own
    WHERE own.lineage && $2::uuid[]
)
SELECT id FROM jobs WHERE id = ANY(ARRAY(SELECT id FROM chosen)) ORDER BY id FOR UPDATE;

-- name: request_cancel
-- A running job is asked; the supervisor of its slot sees to it.
WITH running AS MATERIALIZED (
    SELECT job_id, slot_id FROM held WHERE job_id = ANY($1::uuid[])
), asked AS (
    UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, $2, now())
    WHERE id = ANY(ARRAY(SELECT job_id FROM running))
)
SELECT job_id, slot_id FROM running;

-- name: known_jobs
SELECT id FROM jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[])
UNION
SELECT id FROM history WHERE tenant_id = $1 AND id = ANY($2::uuid[]);

-- name: lock_for_retry
-- Terminal jobs to bring back; locked by their history row, so that two retries make one.
SELECT id, unique_key, unique_until, batch_id FROM history
WHERE tenant_id = $1 AND id = ANY($2::uuid[]) ORDER BY id FOR UPDATE;

-- name: lock_live_parents
-- Whom these jobs still depend on: locked before they are counted, so that none ends unseen in between.
SELECT id FROM jobs
WHERE id = ANY(ARRAY(
    SELECT d.parent_id FROM unnest($1::uuid[]) AS child (id)
    CROSS JOIN LATERAL (SELECT parent_id FROM dependencies WHERE job_id = child.id OFFSET 0) AS d))
ORDER BY id FOR NO KEY UPDATE;

-- name: revive
-- Terminal jobs live again, with a new budget; the last attempt joins the others. Waits in `parked` for parents that
-- live still, or as `limit` when the job has a key.
WITH gone AS MATERIALIZED (
    SELECT h.*, (SELECT count(*)::int FROM dependencies WHERE job_id = h.id) AS live_parents
    FROM history AS h WHERE tenant_id = $2 AND id = ANY($3::uuid[])
), dropped AS (
    DELETE FROM history WHERE tenant_id = $2 AND id = ANY($3::uuid[])
), remembered AS (
    INSERT INTO attempts (job_id, attempt, tenant_id, slot_id, started_at, finished_at, outcome, error)
    SELECT id, attempt, tenant_id, slot_id, started_at, finished_at, state, error FROM gone WHERE started_at IS NOT NULL
), revived AS (
    INSERT INTO jobs (
        id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at, timeout_s, max_attempts, attempt,
        tags, custom_id, batch_id, parent_id, root_id, lineage, schedule_id, callback_url, unique_key, unique_until,
        concurrency_key, on_parent_failure, has_family, last_error, revived_at, pending_parents)
    SELECT
        id, tenant_id, kind, pool, payload, priority, coalesce($1, now()),
        coalesce($1, now()) - priority * $4::float8 * interval '1 second', created_at, timeout_s, max_attempts, attempt,
        tags, custom_id, batch_id, parent_id, root_id, lineage, schedule_id, callback_url, unique_key, unique_until,
        concurrency_key, on_parent_failure, has_family, error, coalesce($1, now()),
        live_parents
    FROM gone
    RETURNING *
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT id, pool, sort_at, kind, tenant_id FROM revived WHERE concurrency_key IS NULL AND pending_parents = 0
), waiting AS (
    INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id, concurrency_key, batch_id, follow_up)
    SELECT id, CASE WHEN pending_parents > 0 THEN 'dependency' ELSE 'limit' END, run_at, sort_at, pool, kind,
        tenant_id, concurrency_key, batch_id, parent_id IS NOT NULL
    FROM revived WHERE concurrency_key IS NOT NULL OR pending_parents > 0
)
SELECT id, pool, gone.state, gone.tenant_id, gone.lineage, gone.has_family, gone.batch_id,
    gone.parent_id IS NOT NULL AS follow_up, gone.concurrency_key, gone.live_parents
FROM gone;

-- name: reopen_batches
-- A finished batch runs again; its row is locked, so that finish_due cannot miss the jobs that came back.
WITH locked AS MATERIALIZED (
    SELECT id, state FROM batches WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE
)
UPDATE batches SET state = 'running', run = run + 1, finished_at = NULL
WHERE id = ANY(ARRAY(SELECT id FROM locked WHERE state = 'finished'));

-- name: discard
-- The row stays; the index of dead letters lets it go.
UPDATE history SET discarded_at = coalesce($4, now()), discarded_by = $3
WHERE tenant_id = $1 AND id = ANY($2::uuid[]) AND state = 'failed' AND discarded_at IS NULL RETURNING id;

-- name: lock_for_change
SELECT priority, run_at, tags FROM jobs WHERE tenant_id = $1 AND id = $2 FOR UPDATE;

-- name: change_job
UPDATE jobs SET priority = $2, run_at = $3::timestamptz, sort_at = $3::timestamptz - $2::int2 * $5::float8 * interval '1 second', tags = $4
WHERE id = $1;

-- name: change_ready
-- After change_job, whose order it takes over.
UPDATE ready SET sort_at = (SELECT sort_at FROM jobs WHERE id = $1) WHERE job_id = $1 RETURNING job_id;

-- name: change_parked
-- One that waits for its parents or a permit only keeps the new time in mind.
UPDATE parked SET run_at = coalesce($2, run_at),
    sort_at = coalesce($2, run_at) - $3::int * $4::float8 * interval '1 second'
WHERE job_id = $1 RETURNING reason;

-- name: delay_ready
-- A queued job is put off, if its new time lies ahead.
WITH moved AS (
    DELETE FROM ready WHERE job_id = $1 AND (SELECT run_at FROM jobs WHERE id = $1) > coalesce($2, now()) RETURNING *
)
INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id, alone, concurrency_key, batch_id, follow_up)
SELECT m.job_id, 'delayed', j.run_at, j.sort_at, m.pool, m.kind, m.tenant_id, m.alone, j.concurrency_key, j.batch_id,
    j.parent_id IS NOT NULL
FROM moved AS m JOIN jobs AS j ON j.id = m.job_id
RETURNING job_id, tenant_id, concurrency_key, batch_id, follow_up;

-- name: is_held
SELECT 1 FROM held WHERE job_id = $1;

-- name: get_jobs
-- One statement, one snapshot: a job that moves this moment is in exactly one of the two.
WITH page AS MATERIALIZED (
    SELECT * FROM live_jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[])
    UNION ALL
    SELECT * FROM finished_jobs WHERE tenant_id = $1 AND id = ANY($2::uuid[])
)
SELECT page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled, f.queued AS follow_queued,
    f.running AS follow_running, f.succeeded AS follow_succeeded, f.failed AS follow_failed,
    f.cancelled AS follow_cancelled
FROM page LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family;

-- name: attempts
-- Ended attempts, the one that ended the job (told by its history row), and the one that runs.
SELECT attempt, slot_id, started_at, finished_at, outcome, error FROM attempts WHERE tenant_id = $1 AND job_id = $2
UNION ALL
SELECT attempt, slot_id, started_at, finished_at, state, error FROM history
WHERE tenant_id = $1 AND id = $2 AND started_at IS NOT NULL
UNION ALL
SELECT attempt, slot_id, claimed_at, NULL, NULL, NULL FROM held WHERE tenant_id = $1 AND job_id = $2
ORDER BY attempt, finished_at;

-- name: create_batch
INSERT INTO batches (id, tenant_id, state, tags, callback_url, created_at)
VALUES ($1, $2, $3, $4, $5, coalesce($6, now()));

-- name: take_part
-- Waits for whoever adds the same part at this moment.
INSERT INTO batch_parts (batch_id, part_key, request_hash, jobs) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING jobs;

-- name: known_part
SELECT request_hash, jobs FROM batch_parts WHERE batch_id = $1 AND part_key = $2;

-- name: batch_state
SELECT state FROM batches WHERE tenant_id = $1 AND id = $2;

-- name: lock_batch_state
-- After the jobs of a part were written, since batches are locked last: a seal waits for them or they for it.
SELECT state FROM batches WHERE tenant_id = $1 AND id = $2 FOR SHARE;

-- name: seal_batch
UPDATE batches SET state = 'running' WHERE tenant_id = $1 AND id = $2 AND state = 'open';

-- name: get_batches
-- What runs is counted once for all of them: `held` has no index by batch. `as_of` orders the snapshots.
WITH running AS MATERIALIZED (
    SELECT batch_id, count(*) FILTER (WHERE NOT follow_up) AS running, count(*) FILTER (WHERE follow_up) AS follow_running
    FROM held WHERE batch_id = ANY($2::uuid[]) GROUP BY batch_id
)
SELECT s.*, coalesce(r.running, 0) AS running, coalesce(r.follow_running, 0) AS follow_running,
    s.total - s.scheduled - coalesce(r.running, 0) - s.succeeded - s.failed - s.cancelled AS queued,
    s.follow_total - s.follow_scheduled - coalesce(r.follow_running, 0) - s.follow_succeeded - s.follow_failed
        - s.follow_cancelled AS follow_queued,
    pg_snapshot_xmax(pg_current_snapshot())::text AS as_of
FROM summed_batches AS s LEFT JOIN running AS r ON r.batch_id = s.id
WHERE s.tenant_id = $1 AND s.id = ANY($2::uuid[]);

-- name: list_batches
SELECT * FROM counted_batches
WHERE tenant_id = $1 AND id < $2 AND ($3::text IS NULL OR state = $3) ORDER BY id DESC LIMIT $4;

-- name: live_of_batch
SELECT id FROM jobs WHERE batch_id = $1 AND id > $2 ORDER BY id LIMIT $3;

-- name: unsuccessful_of_batch
SELECT id FROM history WHERE batch_id = $1 AND id > $2 AND state IN ('failed', 'cancelled')
AND discarded_at IS NULL ORDER BY id LIMIT $3;

-- name: batch_results
-- In the order of the transactions that finished them, below the oldest one still open: a reader skips nothing.
-- A finished batch has none still open, and must not wait for strangers' transactions to show its last lines.
-- A page ends where its results come to a megabyte, as they are stored; the first one is always there.
WITH ended AS MATERIALIZED (
    SELECT xid, tenant_id, id, custom_id, kind, state, attempt, finished_at, result, error,
        coalesce(pg_column_size(result), 0) AS size
    FROM history
    WHERE batch_id = $2 AND parent_id IS NULL AND (xid, id) > ($3::text::xid8, $4::uuid)
    AND (xid < pg_snapshot_xmin(pg_current_snapshot())
         OR EXISTS (SELECT 1 FROM batches WHERE batches.id = $2 AND state = 'finished'))
    ORDER BY xid, id LIMIT $5
), measured AS (
    SELECT *, sum(size) OVER (ORDER BY xid, id) - size AS before FROM ended WHERE tenant_id = $1
)
SELECT xid::text AS xid_text, id, custom_id, kind, state, attempt, finished_at,
    result::text AS result, error::text AS error
FROM measured WHERE before < 1048576 ORDER BY measured.xid, id;

-- name: lock_due_batches
-- Batches that look finished; the next statement looks again, under their locks.
SELECT b.id FROM batches AS b
WHERE b.state = 'running' AND ($1::uuid[] IS NULL OR b.id = ANY($1))
AND NOT EXISTS (
    SELECT 1 FROM batch_counts WHERE batch_id = b.id
    HAVING sum(total + follow_total) <> sum(
        succeeded + failed + cancelled + follow_succeeded + follow_failed + follow_cancelled)
)
ORDER BY b.id LIMIT $2 FOR UPDATE OF b SKIP LOCKED;

-- name: finish_batches
-- A statement of its own, so that it sees what was committed before the locks were taken.
WITH finished AS (
    UPDATE batches AS b SET state = 'finished', finished_at = coalesce($2, now())
    WHERE id = ANY($1::uuid[]) AND state = 'running' AND NOT EXISTS (
        SELECT 1 FROM batch_counts WHERE batch_id = b.id
        HAVING sum(total + follow_total) <> sum(
            succeeded + failed + cancelled + follow_succeeded + follow_failed + follow_cancelled)
    )
    RETURNING *
), told AS (
    INSERT INTO events (at, tenant_id, type, batch_id, data)
    SELECT coalesce($2, now()), tenant_id, 'batch.finished', id, jsonb_build_object('run', run) FROM finished
), owed AS (
    INSERT INTO outbox (tenant_id, url, type, occurred_at, data, due_at)
    SELECT tenant_id, callback_url, 'batch.finished', coalesce($2, now()),
        jsonb_build_object('id', id, 'state', state, 'run', run, 'tags', to_jsonb(tags), 'created_at', created_at,
            'finished_at', finished_at),
        coalesce($2, now())
    FROM finished WHERE callback_url IS NOT NULL
)
SELECT id FROM finished ORDER BY id;

-- name: add_events
INSERT INTO events (tenant_id, type, job_id, batch_id, data)
SELECT * FROM unnest($1::int[], $2::text[], $3::uuid[], $4::uuid[], $5::jsonb[]);

-- name: event_horizon
-- Whatever committed below `horizon` is seen by every statement from now on, and nothing will be added there; `ahead`
-- has not begun: no cursor that this database gave lies there or beyond. `dropped` is the newest that retention took.
SELECT pg_snapshot_xmin(s)::text AS horizon, pg_snapshot_xmax(s)::text AS ahead, d.xid::text AS dropped
FROM events_dropped AS d, pg_current_snapshot() AS s;

-- name: tenant_events
-- From the cursor's own row on, since one row may stand for two events. Who reads below a horizon taken before, and
-- goes on after the last row there, skips nothing.
SELECT xid::text AS xid, n, at, type, kind, job_id, batch_id, settled, data FROM events
WHERE tenant_id = $1 AND (xid, n) >= ($2::text::xid8, $3) ORDER BY events.xid, n LIMIT $4;

-- name: batch_events
SELECT xid::text AS xid, n, at, type, kind, job_id, batch_id, settled, data FROM events
WHERE tenant_id = $1 AND batch_id = $5 AND (xid, n) >= ($2::text::xid8, $3) ORDER BY events.xid, n LIMIT $4;

-- name: job_events
-- An index on every job's events would cost each job its share: the end is found by the transaction that its history
-- row names, a later settling by an index of those alone.
SELECT e.xid::text AS xid, e.n, e.at, e.type, e.kind, e.job_id, e.batch_id, e.settled, e.data FROM (
    SELECT * FROM events
    WHERE xid = (SELECT h.xid FROM history AS h WHERE h.tenant_id = $1 AND h.id = $5) AND job_id = $5
    AND type <> 'job.settled'
    UNION ALL
    SELECT * FROM events WHERE job_id = $5 AND type = 'job.settled'
) AS e
WHERE e.tenant_id = $1 AND (e.xid, e.n) >= ($2::text::xid8, $3) ORDER BY e.xid, e.n LIMIT $4;

-- name: lock_wait
SELECT current_setting('lock_timeout');

-- name: limit_wait
SELECT set_config('lock_timeout', $1, true);

-- name: begin_request
-- The row is the lock: whoever repeats the request waits here until the first has committed or is gone.
INSERT INTO idempotency_keys (tenant_id, key, request_hash) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true;

-- name: known_request
SELECT request_hash, status, headers, body FROM idempotency_keys WHERE tenant_id = $1 AND key = $2;

-- name: finish_request
UPDATE idempotency_keys SET status = $3, headers = $4, body = $5 WHERE tenant_id = $1 AND key = $2;

-- name: pause_pool
INSERT INTO pools AS p (name, paused_at, paused_by, paused_reason) VALUES ($1, now(), $2, $3)
ON CONFLICT (name) DO UPDATE SET paused_at = now(), paused_by = EXCLUDED.paused_by, paused_reason = EXCLUDED.paused_reason
WHERE p.paused_at IS NULL;

-- name: resume_pool
UPDATE pools SET paused_at = NULL, paused_by = NULL, paused_reason = NULL WHERE name = $1;

-- name: list_pools
WITH queued AS MATERIALIZED (
    SELECT pool AS name, count(*) AS jobs FROM ready GROUP BY pool
), running AS MATERIALIZED (
    SELECT s.pool AS name, count(*) AS jobs FROM held AS h JOIN slots AS s ON s.id = h.slot_id GROUP BY s.pool
), live AS MATERIALIZED (
    SELECT pool AS name, count(*) AS slots FROM slots WHERE ended_at IS NULL GROUP BY pool
), names AS (
    SELECT unnest($1::text[]) AS name
    UNION SELECT name FROM pools WHERE paused_at IS NOT NULL
    UNION SELECT name FROM queued
    UNION SELECT name FROM running
    UNION SELECT name FROM live
)
SELECT names.name, p.paused_at, p.paused_by, p.paused_reason, coalesce(queued.jobs, 0) AS queued,
    coalesce(running.jobs, 0) AS running, coalesce(live.slots, 0) AS slots,
    extract(epoch FROM clock_timestamp() - head.since)::float8 AS oldest_s
FROM names
LEFT JOIN pools AS p ON p.name = names.name
LEFT JOIN queued ON queued.name = names.name
LEFT JOIN running ON running.name = names.name
LEFT JOIN live ON live.name = names.name
LEFT JOIN LATERAL (
    SELECT greatest(j.created_at, j.run_at) AS since FROM ready AS r JOIN jobs AS j ON j.id = r.job_id
    WHERE r.pool = names.name ORDER BY r.sort_at, r.job_id LIMIT 1
) AS head ON true
ORDER BY names.name;

-- name: list_tenants_pools
-- Pools as a tenant sees them: its own jobs, its oldest so many by the primary key's order, each looked up by its id.
WITH live AS (
    SELECT j.pool, r.job_id AS queued, h.job_id AS running,
        CASE WHEN r.job_id IS NOT NULL THEN greatest(j.created_at, j.run_at) END AS since
    FROM (SELECT id, pool, created_at, run_at FROM jobs WHERE tenant_id = $1 ORDER BY id LIMIT $3) AS j
    LEFT JOIN LATERAL (SELECT job_id FROM ready WHERE job_id = j.id OFFSET 0) AS r ON true
    LEFT JOIN LATERAL (SELECT job_id FROM held WHERE job_id = j.id OFFSET 0) AS h ON true
)
SELECT names.name, p.paused_at, p.paused_reason, count(live.queued) AS queued, count(live.running) AS running,
    extract(epoch FROM clock_timestamp() - min(live.since))::float8 AS oldest_s
FROM (SELECT unnest($2::text[]) AS name UNION SELECT pool FROM live) AS names
LEFT JOIN pools AS p ON p.name = names.name
LEFT JOIN live ON live.pool = names.name
GROUP BY names.name, p.paused_at, p.paused_reason
ORDER BY names.name;

-- name: drained
-- The last jobs that ended, at most a minute back: what the queues really drain at.
SELECT kind, count(*) AS jobs, extract(epoch FROM clock_timestamp() - min(min(at)) OVER ())::float8 AS within_s
FROM (
    SELECT kind, at FROM events
    WHERE at > now() - interval '1 minute' AND type IN ('job.succeeded', 'job.failed', 'job.cancelled')
    ORDER BY xid DESC, n DESC LIMIT $1
) AS lately GROUP BY kind;

-- name: unannounced
-- The first jobs of every pool that is not empty (found by skipping from pool to pool along the index). The pairs keep
-- the planner from sorting the backlog, as in claim.
WITH RECURSIVE pool AS (
    (SELECT pool AS name FROM ready ORDER BY pool LIMIT 1)
    UNION ALL
    SELECT (SELECT r.pool FROM ready AS r WHERE r.pool > pool.name ORDER BY r.pool LIMIT 1) FROM pool
    WHERE pool.name IS NOT NULL
)
SELECT pool.name AS pool, head.job_id
FROM pool CROSS JOIN LATERAL (
    SELECT r.job_id, r.sort_at FROM ready AS r
    WHERE (r.pool, r.sort_at) >= (pool.name, '-infinity'::timestamptz)
    AND (r.pool, r.sort_at) <= (pool.name, 'infinity'::timestamptz)
    ORDER BY r.pool, r.sort_at, r.job_id LIMIT $2
) AS head
CROSS JOIN LATERAL (SELECT created_at, run_at FROM jobs WHERE id = head.job_id OFFSET 0) AS j
WHERE pool.name IS NOT NULL AND NOT EXISTS (SELECT 1 FROM pools WHERE name = pool.name AND paused_at IS NOT NULL)
AND greatest(j.created_at, j.run_at) < coalesce($3, now()) - $1::float8 * interval '1 second'
ORDER BY pool.name, head.sort_at, head.job_id;

-- name: put_limit
INSERT INTO limits (tenant_id, key, concurrency, is_set) VALUES ($1, $2, $3, true)
ON CONFLICT (tenant_id, key) DO UPDATE SET concurrency = EXCLUDED.concurrency, is_set = true;

-- name: list_limits
SELECT l.key, l.concurrency, l.in_use - coalesce(u.permits, 0) AS in_use,
    (SELECT count(*) FROM parked AS p
     WHERE p.reason = 'limit' AND p.tenant_id = l.tenant_id AND p.concurrency_key = l.key) AS waiting
FROM limits AS l LEFT JOIN uncounted_permits AS u ON u.tenant_id = l.tenant_id AND u.key = l.key
WHERE l.tenant_id = $1
AND l.key = ANY(CASE WHEN $2::text IS NULL THEN ARRAY(SELECT key FROM limits WHERE tenant_id = $1) ELSE ARRAY[$2] END)
ORDER BY l.key;

-- name: limits_to_audit
-- Some of the keys, others each time, and those that jobs wait for without a row.
SELECT tenant_id, key FROM (
    SELECT tenant_id, key FROM limits
    UNION
    SELECT tenant_id, concurrency_key FROM parked WHERE reason = 'limit'
) AS used ORDER BY random() LIMIT $1;

-- name: correct_limits
-- Under the rows' locks. A permit is held by every live job of the key that is not parked, and counted until those
-- that were given back are.
UPDATE limits AS l SET in_use = actual.permits
FROM (
    SELECT k.tenant_id, k.key,
        (SELECT count(*) FROM jobs AS j WHERE j.tenant_id = k.tenant_id AND j.concurrency_key = k.key)
        - (SELECT count(*) FROM parked AS p
           WHERE p.reason = 'limit' AND p.tenant_id = k.tenant_id AND p.concurrency_key = k.key)
        - (SELECT count(*) FROM parked AS p
           WHERE p.reason <> 'limit' AND p.tenant_id = k.tenant_id AND p.concurrency_key = k.key)
        + coalesce(u.permits, 0) AS permits
    FROM unnest($1::int[], $2::text[]) AS k (tenant_id, key)
    LEFT JOIN uncounted_permits AS u ON u.tenant_id = k.tenant_id AND u.key = k.key
) AS actual
WHERE l.tenant_id = actual.tenant_id AND l.key = actual.key AND l.in_use <> actual.permits;

-- name: make_partitions
SELECT sum(create_day_partitions(parent, (coalesce($2, now()) AT TIME ZONE 'UTC')::date, $1))::int
FROM unnest(ARRAY['history', 'attempts', 'events']) AS parent;

-- name: drop_partitions
SELECT drop_day_partitions($1, (coalesce($3, now()) AT TIME ZONE 'UTC')::date - $2::int);

-- name: prune_history_default
-- Rows of a day that had no partition.
DELETE FROM history_default WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM history_default WHERE finished_at < coalesce($3, now()) - $1::int * interval '1 day' LIMIT $2));

-- name: prune_attempts_default
DELETE FROM attempts_default WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM attempts_default WHERE finished_at < coalesce($3, now()) - $1::int * interval '1 day' LIMIT $2));

-- name: prune_events_default
WITH old AS MATERIALIZED (
    SELECT ctid AS place, xid FROM events_default WHERE at < coalesce($3, now()) - $1::int * interval '1 day' LIMIT $2
), noted AS (
    UPDATE events_dropped SET xid = greatest(xid, (SELECT max(xid) FROM old)) WHERE EXISTS (SELECT 1 FROM old)
)
DELETE FROM events_default WHERE ctid = ANY(ARRAY(SELECT place FROM old));

-- name: prune_idempotency_keys
DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency_keys
    WHERE created_at < coalesce($3, now()) - $1::int * interval '1 day' ORDER BY created_at LIMIT $2
    FOR UPDATE SKIP LOCKED));

-- name: prune_families
-- The head's history row is gone by then, and so are its descendants'.
DELETE FROM families WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM families WHERE settled_at < coalesce($3, now()) - $1::int * interval '1 day' LIMIT $2
    FOR UPDATE SKIP LOCKED));

-- name: prune_unique_keys
DELETE FROM unique_keys WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM unique_keys WHERE expires_at < coalesce($2, now()) LIMIT $1
    FOR UPDATE SKIP LOCKED));

-- name: prune_limits
-- Rows that nobody has set and no live job needs; whoever enqueues makes them again.
DELETE FROM limits WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM limits AS l WHERE NOT is_set AND in_use = 0 AND NOT EXISTS (
        SELECT 1 FROM jobs WHERE tenant_id = l.tenant_id AND concurrency_key = l.key)
    LIMIT $1 FOR UPDATE SKIP LOCKED));

-- name: prune_batches
WITH old AS MATERIALIZED (
    SELECT id FROM batches WHERE finished_at < coalesce($3, now()) - $1::int * interval '1 day' LIMIT $2
    FOR UPDATE SKIP LOCKED
), counts AS (
    DELETE FROM batch_counts WHERE batch_id = ANY(ARRAY(SELECT id FROM old))
), parts AS (
    DELETE FROM batch_parts WHERE batch_id = ANY(ARRAY(SELECT id FROM old))
)
DELETE FROM batches WHERE id = ANY(ARRAY(SELECT id FROM old));
