-- name: database_now
-- Every deliverer follows the database's clock, never its own; tests pass theirs.
SELECT coalesce($1::timestamptz, clock_timestamp());

-- name: create_endpoint
-- The secret is shown to its owner once, by the caller.
INSERT INTO webhook_endpoints (id, tenant_id, url, events, description, secret, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, coalesce($7::timestamptz, now()), coalesce($7::timestamptz, now()))
RETURNING *;

-- name: get_endpoint
-- Another tenant's endpoint does not exist.
SELECT * FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2;

-- name: lock_endpoint
-- Two changes of one endpoint happen one after the other.
SELECT * FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2 FOR UPDATE;

-- name: list_endpoints
-- In the order they were made; a page never shifts.
SELECT * FROM webhook_endpoints WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3;

-- name: update_endpoint
-- The caller holds the row. A state that does not change keeps its time and reason.
UPDATE webhook_endpoints
SET url = $3, events = $4, description = $5, version = version + 1, updated_at = coalesce($7::timestamptz, now()),
    disabled_at = CASE WHEN $6 THEN NULL ELSE coalesce(disabled_at, $7::timestamptz, now()) END,
    disabled_reason = CASE WHEN $6 THEN NULL ELSE coalesce(disabled_reason, 'by its owner') END
WHERE tenant_id = $1 AND id = $2
RETURNING *;

-- name: redirect_owed
-- What is owed already goes to the endpoint's new address.
UPDATE outbox SET url = $2 WHERE endpoint_id = $1 AND url <> $2;

-- name: delete_endpoint
-- What was delivered stays in the log until retention drops it.
DELETE FROM webhook_endpoints WHERE tenant_id = $1 AND id = $2 RETURNING id;

-- name: drop_owed
-- Nothing is owed to an endpoint that is gone.
DELETE FROM outbox WHERE endpoint_id = $1;

-- name: rotate_secret
-- The old secret goes on signing beside the new one, so that receivers may change theirs at any moment until then.
UPDATE webhook_endpoints
SET secret = $3, previous_secret = secret, version = version + 1,
    previous_secret_until = coalesce($5::timestamptz, now()) + make_interval(secs => $4),
    updated_at = coalesce($5::timestamptz, now())
WHERE tenant_id = $1 AND id = $2
RETURNING *;

-- name: disable_endpoint
-- The receiver said that it is gone. No row when it is disabled or deleted already, so that it is told once.
UPDATE webhook_endpoints
SET disabled_at = $2, disabled_reason = $3, version = version + 1, updated_at = $2
WHERE id = $1 AND disabled_at IS NULL
RETURNING *;

-- name: create_callback_secret
-- Of two askers at once one makes it, and both read it.
INSERT INTO callback_secrets (tenant_id, secret) VALUES ($1, $2) ON CONFLICT (tenant_id) DO NOTHING;

-- name: get_callback_secret
-- Made on first demand.
SELECT secret, previous_secret_until FROM callback_secrets WHERE tenant_id = $1;

-- name: rotate_callback_secret
-- As an endpoint's: the old one goes on signing beside it. A tenant that never asked for one gets its first.
INSERT INTO callback_secrets AS present (tenant_id, secret) VALUES ($1, $2)
ON CONFLICT (tenant_id) DO UPDATE
SET secret = excluded.secret, previous_secret = present.secret,
    previous_secret_until = coalesce($4::timestamptz, now()) + make_interval(secs => $3)
RETURNING secret, previous_secret_until;

-- name: owe
-- One delivery by hand: a test. Everything else is owed by the ledger or by the fan-out of events.
INSERT INTO outbox (id, tenant_id, endpoint_id, url, type, data, occurred_at, due_at)
VALUES ($1, $2, $3, $4, $5, $6, coalesce($7::timestamptz, now()), coalesce($7::timestamptz, now()));

-- name: fan_out
-- Hands the next events to the endpoints that want them, exactly once: rows and cursor move in one statement, and
-- only below the oldest open transaction, so that one which commits late is not skipped. An end that also settled
-- its job is two events in one row. After a restore into a new cluster, where transactions count anew, the cursor
-- lies ahead of them all: then it goes on by n alone, which the restored sequence counts on.
WITH cursor AS MATERIALIZED (
    SELECT xid, n, xid >= pg_snapshot_xmin(pg_current_snapshot()) AS is_foreign
    FROM webhook_cursor
    FOR UPDATE SKIP LOCKED
), start AS MATERIALIZED (
    SELECT CASE WHEN is_foreign THEN '0' ELSE xid END AS xid, CASE WHEN is_foreign THEN 0 ELSE n END AS n,
        CASE WHEN is_foreign THEN n ELSE -1 END AS n_floor
    FROM cursor
), page AS MATERIALIZED (
    SELECT *
    FROM events
    WHERE (xid, n) > ((SELECT xid FROM start), (SELECT n FROM start))
        AND n > (SELECT n_floor FROM start)
        AND xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY xid, n
    LIMIT $1
), told AS (
    SELECT page.*, meaning.type AS meant
    FROM page
    CROSS JOIN LATERAL (
        SELECT page.type UNION ALL SELECT 'job.settled' WHERE page.settled
    ) AS meaning (type)
), owed AS (
    INSERT INTO outbox (tenant_id, endpoint_id, url, type, occurred_at, data, due_at)
    SELECT told.tenant_id, endpoint.id, endpoint.url, told.meant, told.at,
        jsonb_strip_nulls(jsonb_build_object(
            'job_id', told.job_id, 'kind', told.kind, 'batch_id', told.batch_id))
            || CASE WHEN jsonb_typeof(told.data) = 'object' THEN told.data ELSE '{}' END,
        coalesce($2::timestamptz, now())
    FROM told
    JOIN webhook_endpoints AS endpoint ON endpoint.tenant_id = told.tenant_id
    WHERE endpoint.disabled_at IS NULL
        AND endpoint.created_at <= told.at
        AND endpoint.events && ARRAY[told.meant, split_part(told.meant, '.', 1) || '.*', '*']
    RETURNING 1
), moved AS (
    UPDATE webhook_cursor
    SET (xid, n) = (SELECT xid, n FROM page ORDER BY xid DESC, n DESC LIMIT 1)
    WHERE EXISTS (SELECT FROM page)
)
SELECT (SELECT count(*) FROM page) AS read, (SELECT count(*) FROM owed) AS owed;
