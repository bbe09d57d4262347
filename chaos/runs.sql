-- What a run does to its own stack, and how it sees that the stack is done. The table of effects is schema.sql's.

-- name: clear_effect
-- An attempt that runs after a lost one replaces what that one wrote: under the fence, nobody else writes it now.
DELETE FROM chaos_effects WHERE job_id = $1;

-- name: write_effect
INSERT INTO chaos_effects (job_id, token, attempt) VALUES ($1, $2, $3);

-- name: lasting_effects
-- An effect counts once its job has succeeded; a second row counts always.
SELECT e.job_id, e.token, e.attempt
FROM chaos_effects AS e
LEFT JOIN history AS h ON h.id = e.job_id
LEFT JOIN jobs AS j ON j.id = e.job_id
WHERE (h.state = 'succeeded' AND j.id IS NULL)
    OR (SELECT count(*) FROM chaos_effects AS other WHERE other.job_id = e.job_id) > 1;

-- name: remaining_work
-- What has yet to happen before a run is over: live jobs, and callbacks that are due before the run ends.
SELECT (SELECT count(*) FROM jobs) AS live,
    (SELECT count(*) FROM batches WHERE state = 'running') AS batches,
    (SELECT count(*) FROM outbox WHERE due_at < clock_timestamp() + interval '10 seconds') AS callbacks;

-- name: unfinished
-- What was still to be done when the time was over, a line each.
SELECT id, kind || ' job ' || state || coalesce(' (' || state_reason || ')', '') || ', attempt ' || attempt
    || coalesce(', slot ' || slot_id, '') AS what
FROM live_jobs
UNION ALL
SELECT id, type || ' callback due at ' || due_at || ', attempt ' || attempt FROM outbox
UNION ALL
SELECT id, 'running batch' FROM batches WHERE state = 'running';

-- name: drained
-- How many jobs of a batch have ended, and the seconds from its acceptance to the last end.
SELECT count(*) AS jobs, coalesce(extract(epoch FROM max(finished_at) - min(created_at)), 0)::float8 AS seconds
FROM history WHERE batch_id = $1;

-- name: terminate_backends
-- Every connection of the product's, whatever it does now; chaos itself keeps its own.
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'xnai %' AND pid <> pg_backend_pid()
    AND application_name <> 'xnai chaos';

-- name: first_finish_since
-- When the first job that was accepted after a moment was finished: the stack served again by then.
SELECT extract(epoch FROM min(finished_at) - $1)::float8 FROM history WHERE created_at >= $1;

-- name: start_waits
-- Seconds from when a job could have started to when its last attempt did, for jobs that nothing held back.
SELECT extract(epoch FROM started_at - created_at)::float8 FROM history
WHERE started_at IS NOT NULL AND run_at <= created_at AND attempt = 1 AND concurrency_key IS NULL AND parent_id IS NULL;
