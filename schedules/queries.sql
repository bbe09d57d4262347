-- name: database_now
-- Every ticker follows the database's clock, never its own; tests pass theirs.
SELECT coalesce($1::timestamptz, now());

-- name: create_schedule
-- A name that is taken yields no row, without ending the caller's transaction.
INSERT INTO schedules (
    id, tenant_id, name, job, cron, every_s, adaptive_min_s, adaptive_max_s, timezone, jitter_s, misfire, overlap,
    anchor_at, planned_at, created_at, updated_at, interval_s, next_at, due_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13, $13, $13, $14, $15, $16)
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING *;

-- name: get_schedule
-- Another tenant's schedule does not exist.
SELECT * FROM schedules WHERE tenant_id = $1 AND id = $2;

-- name: list_schedules
-- Ids are UUIDv7, so their order is that of creation and a page never shifts.
SELECT * FROM schedules WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3;

-- name: lock_schedule
-- A change and a fire of one schedule happen one after the other.
SELECT * FROM schedules WHERE tenant_id = $1 AND id = $2 FOR UPDATE;

-- name: update_schedule
-- The whole specification is replaced; the caller holds the row and worked out the next fire.
UPDATE schedules
SET name = $3, job = $4, cron = $5, every_s = $6, adaptive_min_s = $7, adaptive_max_s = $8, timezone = $9,
    jitter_s = $10, misfire = $11, overlap = $12, anchor_at = $13, interval_s = $14, unchanged_runs = $15,
    next_at = $16, due_at = $17, planned_at = $18, updated_at = $18, version = version + 1
WHERE id = $1 AND tenant_id = $2
RETURNING *;

-- name: delete_schedule
-- Its fires go with it; the jobs are the ledger's and stay.
DELETE FROM schedules WHERE tenant_id = $1 AND id = $2 RETURNING id;

-- name: pause_schedule
-- A second pause changes nothing, so that the first one's reason stays.
UPDATE schedules
SET paused_by = CASE WHEN paused_at IS NULL THEN $3 ELSE paused_by END,
    paused_reason = CASE WHEN paused_at IS NULL THEN $4 ELSE paused_reason END,
    version = version + (paused_at IS NULL)::int,
    updated_at = CASE WHEN paused_at IS NULL THEN coalesce($5::timestamptz, now()) ELSE updated_at END,
    paused_at = coalesce(paused_at, $5::timestamptz, now()),
    next_at = NULL, due_at = NULL
WHERE tenant_id = $1 AND id = $2
RETURNING *;

-- name: resume_schedule
-- The caller holds the row and worked out the next fire.
UPDATE schedules
SET paused_at = NULL, paused_by = NULL, paused_reason = NULL, next_at = $2, due_at = $3,
    planned_at = $4, updated_at = $4, version = version + 1
WHERE id = $1
RETURNING *;

-- name: record_manual_fire
-- Two triggers within one tick of the clock are two fires; the caller holds the schedule's row.
INSERT INTO schedule_fires (schedule_id, fire_at, tenant_id, decided_at, cause, actor, outcome)
SELECT $1, coalesce(max(fire_at) + interval '1 microsecond', $3), $2, $3, 'manual', $4, 'enqueued'
FROM schedule_fires
WHERE schedule_id = $1 AND fire_at >= $3
RETURNING fire_at;

-- name: list_fires
-- Newest first, by the timetable.
SELECT * FROM schedule_fires
WHERE schedule_id = $1 AND ($2::timestamptz IS NULL OR fire_at < $2)
ORDER BY fire_at DESC
LIMIT $3;

-- name: claim_due
-- Whoever locks a due schedule fires it; the others pass it over.
SELECT * FROM schedules
WHERE due_at <= $1 AND ($3::uuid IS NULL OR id = $3)
ORDER BY due_at
LIMIT $2
FOR UPDATE SKIP LOCKED;

-- name: due_ids
-- After a batch failed: which schedules to try one by one.
SELECT id FROM schedules WHERE due_at <= $1 ORDER BY due_at LIMIT $2;

-- name: put_off
-- A schedule that cannot be decided must not stand in the way of the others: it is tried again a minute later.
UPDATE schedules SET due_at = $2::timestamptz + interval '1 minute' WHERE id = $1 AND due_at <= $2;

-- name: claim_set_back
-- Planned later than now: the clock ran ahead and was set back, and the next fire may lie years away.
SELECT * FROM schedules
WHERE due_at IS NOT NULL AND planned_at > $1
ORDER BY planned_at
LIMIT $2
FOR UPDATE SKIP LOCKED;

-- name: open_jobs
-- The jobs of these schedules that were not settled when last looked at.
SELECT tenant_id, schedule_id, job_id FROM schedule_fires WHERE schedule_id = ANY($1::uuid[]) AND look_at IS NOT NULL;

-- name: record_fires
-- A fire that exists already (the clock was set back) yields no row, and no second job.
INSERT INTO schedule_fires (schedule_id, fire_at, tenant_id, decided_at, cause, outcome, detail)
SELECT schedule_id, fire_at, tenant_id, $6, 'time', outcome, detail
FROM unnest($1::uuid[], $2::timestamptz[], $3::int[], $4::text[], $5::text[])
    AS fire (schedule_id, fire_at, tenant_id, outcome, detail)
ON CONFLICT (schedule_id, fire_at) DO NOTHING
RETURNING schedule_id, fire_at;

-- name: attach_jobs
-- What became of the fires: their jobs, or why the ledger refused them. Each is looked up by its place, here and below: a
-- join may read all fires while their statistics are old. The caller has locked them.
WITH made AS MATERIALIZED (
    SELECT own.ctid AS place, named.*
    FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::text[]) AS named (schedule_id, fire_at, job_id, detail)
    CROSS JOIN LATERAL (
        SELECT ctid FROM schedule_fires WHERE schedule_id = named.schedule_id AND fire_at = named.fire_at OFFSET 0
    ) AS own
)
UPDATE schedule_fires AS fire
SET job_id = made.job_id,
    outcome = CASE WHEN made.job_id IS NULL THEN 'refused' ELSE 'enqueued' END,
    detail = made.detail,
    look_at = CASE WHEN made.job_id IS NULL THEN NULL ELSE $5::timestamptz END
FROM made WHERE fire.ctid = made.place
RETURNING fire.*;

-- name: advance
-- On to the next fire. The anchor moves only with an adaptive schedule, whose period is counted from its last fire.
UPDATE schedules
SET next_at = plan.next_at, due_at = plan.due_at, last_fire_at = coalesce(plan.fired_at, last_fire_at),
    anchor_at = plan.anchor_at, interval_s = plan.interval_s, unchanged_runs = plan.unchanged_runs, planned_at = $8
FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[],
            $6::double precision[], $7::int[])
    AS plan (id, next_at, due_at, fired_at, anchor_at, interval_s, unchanged_runs)
WHERE schedules.id = plan.id;

-- name: claim_open_fires
-- Fires whose jobs to look at again. Locks are only ever taken in passing, so no order of them can deadlock.
SELECT fire.schedule_id, fire.fire_at, fire.tenant_id, fire.job_id, fire.decided_at
FROM schedule_fires AS fire
JOIN schedules ON schedules.id = fire.schedule_id
WHERE fire.look_at <= $1
ORDER BY fire.look_at
LIMIT $2
FOR UPDATE SKIP LOCKED;

-- name: look_again
-- The longer a job takes, the more seldom it is looked at: a tenth of its age, between 1 s and 1 min.
UPDATE schedule_fires AS fire
SET look_at = $3::timestamptz + least(greatest(($3::timestamptz - fire.decided_at) / 10, interval '1 second'), interval '1 minute')
WHERE fire.ctid = ANY(ARRAY(
    SELECT own.ctid FROM unnest($1::uuid[], $2::timestamptz[]) AS named (schedule_id, fire_at)
    CROSS JOIN LATERAL (
        SELECT ctid FROM schedule_fires WHERE schedule_id = named.schedule_id AND fire_at = named.fire_at OFFSET 0
    ) AS own));

-- name: close_fires
-- The job has settled: keep how it ended, which outlives the job itself.
WITH closed AS MATERIALIZED (
    SELECT own.ctid AS place, named.*
    FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS named (schedule_id, fire_at, job_state)
    CROSS JOIN LATERAL (
        SELECT ctid FROM schedule_fires WHERE schedule_id = named.schedule_id AND fire_at = named.fire_at OFFSET 0
    ) AS own
)
UPDATE schedule_fires AS fire
SET job_state = closed.job_state, settled_at = $4, look_at = NULL
FROM closed WHERE fire.ctid = closed.place;

-- name: get_adaptive
-- The adaptive ones of schedules whose rows the caller holds.
SELECT * FROM schedules WHERE id = ANY($1::uuid[]) AND interval_s IS NOT NULL;

-- name: next_due_in_s
-- How long a ticker may sleep; null when nothing is scheduled.
SELECT extract(epoch FROM min(due_at) - coalesce($1::timestamptz, clock_timestamp()))::double precision FROM schedules;

-- name: prune_fires
-- Retention: old fires in bites, never one whose job still runs.
DELETE FROM schedule_fires
WHERE (schedule_id, fire_at) IN (
    SELECT schedule_id, fire_at FROM schedule_fires WHERE decided_at < $1 AND look_at IS NULL ORDER BY decided_at LIMIT $2
);
