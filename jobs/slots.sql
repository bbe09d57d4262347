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
    SELECT slot_id, job_id FROM held
    WHERE slot_id = ANY($1::bigint[])
    AND EXISTS (SELECT 1 FROM jobs WHERE id = held.job_id AND cancel_requested_at IS NOT NULL)
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
SELECT h.job_id, h.token, h.attempt, h.claimed_at, h.tenant_id, h.batch_id, j.kind, j.pool, j.max_attempts, j.failures,
    j.losses, j.parent_id, j.lineage, j.cancel_requested_at IS NOT NULL AS is_cancelled
FROM held AS h JOIN jobs AS j ON j.id = h.job_id WHERE h.slot_id = $1 AND h.job_id > $2 ORDER BY h.job_id LIMIT $3;

-- name: to_sweep
-- What is there to do? One look at the head of each index, so that an idle stack costs one statement a sweep.
SELECT
    coalesce((SELECT expires_at FROM jobs WHERE expires_at IS NOT NULL ORDER BY expires_at LIMIT 1)
        <= clock_timestamp(), false) AS expired,
    coalesce((SELECT run_at FROM parked WHERE reason IN ('delayed', 'backoff') ORDER BY run_at LIMIT 1)
        <= clock_timestamp(), false) AS due,
    EXISTS (SELECT 1 FROM batches WHERE state = 'running') AS batches,
    EXISTS (SELECT 1 FROM limits) OR EXISTS (SELECT 1 FROM parked WHERE reason = 'limit') AS limits,
    EXISTS (SELECT 1 FROM ready) AS ready;
