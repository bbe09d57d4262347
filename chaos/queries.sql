-- Everything that the stores say, read whole and in one snapshot after a run. Nothing here is for a hot path.

-- name: all_jobs
-- Live and terminal ones, with every narrow row of a live one.
SELECT j.id, j.tenant_id, NULL AS ended_as, j.created_at, j.max_attempts, j.attempt, j.failures,
    array_remove(ARRAY[
        CASE WHEN r.job_id IS NOT NULL THEN 'ready' END,
        CASE WHEN p.job_id IS NOT NULL THEN 'parked' END,
        CASE WHEN h.job_id IS NOT NULL THEN 'held' END], NULL) AS places,
    h.slot_id, h.token, h.attempt AS held_attempt, p.reason, j.pending_parents,
    NULL::timestamptz AS started_at, NULL::timestamptz AS finished_at, NULL AS xid, j.unique_key, j.unique_until,
    j.concurrency_key, j.batch_id, j.parent_id, j.lineage, j.schedule_id, j.callback_url
FROM jobs AS j
LEFT JOIN ready AS r ON r.job_id = j.id
LEFT JOIN parked AS p ON p.job_id = j.id
LEFT JOIN held AS h ON h.job_id = j.id
UNION ALL
SELECT id, tenant_id, state, created_at, max_attempts, attempt, failures, '{}', NULL, NULL, NULL, NULL, 0, started_at,
    finished_at, xid::text, unique_key, unique_until, concurrency_key, batch_id, parent_id, lineage, schedule_id,
    callback_url
FROM history;

-- name: orphans
SELECT place, job_id FROM (
    SELECT 'ready' AS place, job_id FROM ready
    UNION ALL SELECT 'parked', job_id FROM parked
    UNION ALL SELECT 'held', job_id FROM held
) AS narrow WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = narrow.job_id);

-- name: all_attempts
SELECT job_id, attempt, outcome, finished_at FROM attempts ORDER BY job_id, attempt, finished_at;

-- name: all_events
SELECT xid::text AS xid, at, type, job_id, batch_id, settled, (data ->> 'run')::int AS run FROM events
WHERE type LIKE 'job.%' OR type LIKE 'batch.%' ORDER BY events.xid, n;

-- name: all_families
SELECT job_id, open, total, succeeded, failed, cancelled, settled_at IS NOT NULL AS is_settled FROM families;

-- name: all_dependencies
SELECT parent_id, job_id FROM dependencies;

-- name: all_limits
SELECT l.tenant_id, l.key, l.concurrency, l.in_use - coalesce(u.permits, 0) AS in_use
FROM limits AS l LEFT JOIN uncounted_permits AS u ON u.tenant_id = l.tenant_id AND u.key = l.key;

-- name: all_unique_keys
SELECT tenant_id, key, job_id, until FROM unique_keys;

-- name: all_batches
SELECT * FROM counted_batches;

-- name: all_requests
SELECT key, body FROM idempotency_keys WHERE status BETWEEN 200 AND 299;

-- name: all_callbacks
SELECT id, 'outbox' AS place, type, url, occurred_at, data, endpoint_id FROM outbox
UNION ALL
SELECT id, state, type, url, occurred_at, data, endpoint_id FROM deliveries;

-- name: all_slots
SELECT id, ended_at FROM slots;

-- name: shown_chunks
-- What a search of a collection must be able to find now, by the names that its hits have.
SELECT c.id FROM collections o
JOIN editions e ON e.collection_id = o.id AND e.born_gen <= o.generation
    AND (e.died_gen IS NULL OR e.died_gen > o.generation)
JOIN documents d ON d.id = e.document_id AND d.deleted_at IS NULL
JOIN chunks c ON c.edition_id = e.id
WHERE o.id = $1;
