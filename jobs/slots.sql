-- Slots: who may hold jobs, whether they live, and what the dead ones held.

-- name: register_slot
INSERT INTO slots (supervisor_id, pool, number, host, pid, cores, kinds, version, machine, pid_started)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id;

-- name: beat
-- A supervisor's whole conversation with the ledger, once a second: its slots live, in these states, and which of
-- their jobs are to be cancelled? Slots that are not answered have been declared dead. The database's clock: a
-- stepped clock of a host is nobody's death.
WITH live AS (
    UPDATE slots SET beat = beat + 1, beat_at = clock_timestamp(),
        state = ($2::text[])[array_position($1::bigint[], id)]
    WHERE id = ANY($1::bigint[]) AND ended_at IS NULL
    RETURNING id
), asked AS (
    SELECT h.slot_id, h.job_id FROM held AS h
    CROSS JOIN LATERAL (SELECT cancel_requested_at FROM jobs WHERE id = h.job_id OFFSET 0) AS j
    WHERE h.slot_id = ANY($1::bigint[]) AND j.cancel_requested_at IS NOT NULL
)
SELECT live.id, array_remove(array_agg(asked.job_id), NULL) AS cancels
FROM live LEFT JOIN asked ON asked.slot_id = live.id GROUP BY live.id;

-- name: beats
SELECT id, beat, machine, pid, pid_started FROM slots WHERE ended_at IS NULL;

-- name: live_slots
SELECT s.*, (SELECT count(*) FROM held WHERE slot_id = s.id) AS running FROM slots AS s
WHERE ended_at IS NULL ORDER BY pool, number, id;

-- name: limit_end_wait
-- A claim holds its slot's row for milliseconds, unless its process stopped in the middle of it.
SET LOCAL lock_timeout = '2s';

-- name: end_slot
-- Waits for the claims that run under this row (they hold it FOR KEY SHARE); none can begin after it.
WITH dying AS MATERIALIZED (
    SELECT id FROM slots WHERE id = $1 AND ended_at IS NULL FOR UPDATE
)
UPDATE slots SET ended_at = clock_timestamp(), end_reason = $2 WHERE id = ANY(ARRAY(SELECT id FROM dying))
RETURNING id;

-- name: close_connections
-- A stopped process reads no answer: the server waits to send it, with all the locks of that statement, and no timeout
-- of the server ends that.
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name LIKE $1 || '%' AND pid <> pg_backend_pid();

-- name: ended_holding
-- Who declared the death rescues at once and knows more; after a while anybody does.
SELECT s.id FROM slots AS s
WHERE s.ended_at <= clock_timestamp() - $1::float8 * interval '1 second'
AND s.id = ANY(ARRAY(SELECT DISTINCT slot_id FROM held));

-- name: slot_end
SELECT end_reason FROM slots WHERE id = $1 AND ended_at IS NOT NULL;

-- name: held_by_slot
WITH page AS MATERIALIZED (
    SELECT * FROM held WHERE slot_id = $1 AND job_id > $2 ORDER BY job_id LIMIT $3
)
SELECT h.job_id, h.token, h.attempt, h.claimed_at, h.tenant_id, h.batch_id, j.kind, j.pool, j.max_attempts, j.failures,
    j.losses, j.parent_id, j.lineage, j.cancel_requested_at IS NOT NULL AS is_cancelled
FROM page AS h CROSS JOIN LATERAL (SELECT * FROM jobs WHERE id = h.job_id OFFSET 0) AS j ORDER BY h.job_id;

-- name: to_sweep
-- What is there to do? One look at the head of each index, so that an idle stack costs one statement a sweep. The
-- orders name the indexes: EXISTS would read a whole table for the one row that a bad estimate promises.
SELECT
    coalesce((SELECT expires_at FROM jobs WHERE expires_at IS NOT NULL ORDER BY expires_at LIMIT 1)
        <= clock_timestamp(), false) AS expired,
    coalesce((SELECT run_at FROM parked WHERE reason IN ('delayed', 'backoff') ORDER BY run_at LIMIT 1)
        <= clock_timestamp(), false) AS due,
    (SELECT id FROM batches WHERE state = 'running' ORDER BY id LIMIT 1) IS NOT NULL AS batches,
    (SELECT key FROM limits ORDER BY tenant_id, key LIMIT 1) IS NOT NULL
        OR (SELECT job_id FROM parked WHERE reason = 'limit' ORDER BY tenant_id, concurrency_key, sort_at LIMIT 1)
            IS NOT NULL AS limits,
    (SELECT job_id FROM ready ORDER BY pool, sort_at, job_id LIMIT 1) IS NOT NULL AS ready;
