-- Pages of jobs, newest first. A page reads the next 10,000 rows by id, whatever its filter leaves of them, and stops
-- as soon as it is full. `read_to`: how far a page came that is not full although there is more.
-- A limit that is spelled out and row comparisons lead into the index, the filter is applied to what was read, and
-- sorting is made to look dear meanwhile, as for the slices of jobs/operations.sql (tests/jobs/test_list_plans.py).
-- One statement, one snapshot: a job that moves this moment is in exactly one of the places that are read.

-- name: dear_sorting
-- Until the end of the transaction.
SET LOCAL enable_sort = off;

-- name: list_all
-- Live and finished jobs merged in the order of ids; finished_at leads to the one day that holds the job.
WITH read AS MATERIALIZED (
    (SELECT tenant_id, id, NULL::timestamptz AS finished_at,
        ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR $4 = ANY(tags)) AS matches
        FROM jobs WHERE (tenant_id, id) < ($1::int, $2::uuid)
        AND (tenant_id, id) >= ($1::int, '00000000-0000-0000-0000-000000000000')
        ORDER BY tenant_id DESC, id DESC LIMIT 10000)
    UNION ALL
    (SELECT tenant_id, id, finished_at,
        ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR $4 = ANY(tags)) AS matches
        FROM history WHERE (tenant_id, id) < ($1::int, $2::uuid)
        AND (tenant_id, id) >= ($1::int, '00000000-0000-0000-0000-000000000000')
        ORDER BY tenant_id DESC, id DESC LIMIT 10000)
    ORDER BY tenant_id DESC, id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (SELECT * FROM live_jobs WHERE id = found.id OFFSET 0) AS own
    WHERE found.finished_at IS NULL
    UNION ALL
    SELECT own.* FROM found CROSS JOIN LATERAL (
        SELECT * FROM finished_jobs WHERE tenant_id = $1 AND id = found.id AND finished_at = found.finished_at OFFSET 0
    ) AS own
    WHERE found.finished_at IS NOT NULL
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;

-- name: list_scheduled
-- The narrow table of a state finds its jobs, however many others there are. Its rows are those of all tenants.
WITH read AS MATERIALIZED (
    SELECT job_id AS id, CASE
        WHEN tenant_id <> $1 OR kind <> $3 THEN false
        WHEN $4::text IS NULL THEN true
        ELSE (SELECT 1 FROM jobs WHERE id = n.job_id AND $4 = ANY(tags)) IS NOT NULL
    END AS matches
    FROM parked AS n WHERE job_id < $2::uuid ORDER BY job_id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (SELECT * FROM live_jobs WHERE id = found.id OFFSET 0) AS own
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;

-- name: list_queued
-- As list_scheduled.
WITH read AS MATERIALIZED (
    SELECT job_id AS id, CASE
        WHEN tenant_id <> $1 OR kind <> $3 THEN false
        WHEN $4::text IS NULL THEN true
        ELSE (SELECT 1 FROM jobs WHERE id = n.job_id AND $4 = ANY(tags)) IS NOT NULL
    END AS matches
    FROM ready AS n WHERE job_id < $2::uuid ORDER BY job_id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (SELECT * FROM live_jobs WHERE id = found.id OFFSET 0) AS own
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;

-- name: list_running
-- As list_scheduled; what runs carries no kind.
WITH read AS MATERIALIZED (
    SELECT job_id AS id, CASE
        WHEN tenant_id <> $1 THEN false
        WHEN coalesce($3::text, $4) IS NULL THEN true
        ELSE (SELECT 1 FROM jobs WHERE id = n.job_id AND ($3 IS NULL OR kind = $3) AND ($4 IS NULL OR $4 = ANY(tags)))
            IS NOT NULL
    END AS matches
    FROM held AS n WHERE job_id < $2::uuid ORDER BY job_id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (SELECT * FROM live_jobs WHERE id = found.id OFFSET 0) AS own
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;

-- name: list_finished
-- Succeeded or cancelled, or failed and discarded.
WITH read AS MATERIALIZED (
    SELECT id, finished_at, ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR $4 = ANY(tags))
        AND state = $6::text AND (state <> 'failed' OR discarded_at IS NOT NULL)
        AND ($7::text IS NULL OR error ->> 'type' = $7) AS matches
    FROM history WHERE (tenant_id, id) < ($1::int, $2::uuid)
    AND (tenant_id, id) >= ($1::int, '00000000-0000-0000-0000-000000000000')
    ORDER BY tenant_id DESC, id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (
        SELECT * FROM finished_jobs WHERE tenant_id = $1 AND id = found.id AND finished_at = found.finished_at OFFSET 0
    ) AS own
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;

-- name: list_failed
-- Dead letters: their index holds nothing else. Discarded ones are no longer among them.
WITH read AS MATERIALIZED (
    SELECT id, finished_at, ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR $4 = ANY(tags))
        AND ($6::text IS NULL OR error ->> 'type' = $6) AS matches
    FROM history WHERE state = 'failed' AND discarded_at IS NULL AND (tenant_id, id) < ($1::int, $2::uuid)
    AND (tenant_id, id) >= ($1::int, '00000000-0000-0000-0000-000000000000')
    ORDER BY tenant_id DESC, id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (
        SELECT * FROM finished_jobs WHERE tenant_id = $1 AND id = found.id AND finished_at = found.finished_at OFFSET 0
    ) AS own
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;

-- name: list_batch
-- As list_all, by the indexes of batches. The state of a live job is looked up only if one was asked for.
-- Whose batch it is not learns nothing of it, not even by a cursor.
WITH read AS MATERIALIZED (
    (SELECT batch_id, id, NULL::timestamptz AS finished_at, tenant_id, tenant_id = $1
        AND ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR $4 = ANY(tags))
        AND $8::text IS NULL AND $9::bool IS NOT TRUE AND CASE
            WHEN $7::text IS NULL THEN true
            WHEN $7 = 'running' THEN (SELECT 1 FROM held WHERE job_id = jobs.id) IS NOT NULL
            WHEN $7 = 'queued' THEN (SELECT 1 FROM ready WHERE job_id = jobs.id) IS NOT NULL
            WHEN $7 = 'scheduled' THEN (SELECT 1 FROM parked WHERE job_id = jobs.id) IS NOT NULL
            ELSE false
        END AS matches
        FROM jobs WHERE batch_id IS NOT NULL AND (batch_id, id) < ($6::uuid, $2::uuid)
        AND (batch_id, id) >= ($6::uuid, '00000000-0000-0000-0000-000000000000')
        ORDER BY batch_id DESC, id DESC LIMIT 10000)
    UNION ALL
    (SELECT batch_id, id, finished_at, tenant_id, tenant_id = $1
        AND ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR $4 = ANY(tags))
        AND ($7::text IS NULL OR state = $7) AND ($8::text IS NULL OR error ->> 'type' = $8)
        AND ($9::bool IS NULL OR (discarded_at IS NOT NULL) = $9) AS matches
        FROM history WHERE batch_id IS NOT NULL AND (batch_id, id) < ($6::uuid, $2::uuid)
        AND (batch_id, id) >= ($6::uuid, '00000000-0000-0000-0000-000000000000')
        ORDER BY batch_id DESC, id DESC LIMIT 10000)
    ORDER BY batch_id DESC, id DESC LIMIT 10000
), found AS MATERIALIZED (
    SELECT * FROM read WHERE matches LIMIT $5
), page AS MATERIALIZED (
    SELECT own.* FROM found CROSS JOIN LATERAL (SELECT * FROM live_jobs WHERE id = found.id OFFSET 0) AS own
    WHERE found.finished_at IS NULL
    UNION ALL
    SELECT own.* FROM found CROSS JOIN LATERAL (
        SELECT * FROM finished_jobs WHERE tenant_id = $1 AND id = found.id AND finished_at = found.finished_at OFFSET 0
    ) AS own
    WHERE found.finished_at IS NOT NULL
)
SELECT ended.read_to, page.*, f.settled_at, f.total AS follow_total, f.scheduled AS follow_scheduled,
    f.queued AS follow_queued, f.running AS follow_running, f.succeeded AS follow_succeeded,
    f.failed AS follow_failed, f.cancelled AS follow_cancelled
FROM (SELECT CASE
    WHEN (SELECT count(*) FROM found) = $5 THEN NULL
    WHEN (SELECT count(*) FROM read) = 10000 THEN (SELECT id FROM read WHERE tenant_id = $1 ORDER BY id LIMIT 1)
END AS read_to) AS ended
LEFT JOIN page ON true
LEFT JOIN LATERAL (SELECT * FROM family_counts WHERE job_id = page.id OFFSET 0) AS f ON page.has_family
ORDER BY page.id DESC;
