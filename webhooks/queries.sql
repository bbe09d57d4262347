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
SELECT secret FROM callback_secrets WHERE tenant_id = $1;

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

-- name: claim_owed
-- A fair share of what is due: of each host at most as many as its lane has free, so that a hanging receiver with a
-- long backlog slows nobody else. Reads one index range a host, however long the backlog; by an array of ids,
-- since a join would read the whole table while its statistics are old.
-- A claim is a lease: a dead deliverer's rows are due again when it ends.
WITH RECURSIVE hosts AS (
    (SELECT host FROM outbox ORDER BY host LIMIT 1)
    UNION ALL
    SELECT (SELECT outbox.host FROM outbox WHERE outbox.host > hosts.host ORDER BY outbox.host LIMIT 1)
    FROM hosts
    WHERE hosts.host IS NOT NULL
), due AS MATERIALIZED (
    SELECT owed.id
    FROM hosts
    LEFT JOIN unnest($4::text[], $5::int[]) AS lane (host, free) ON lane.host = hosts.host
    CROSS JOIN LATERAL (
        SELECT id, due_at
        FROM outbox
        WHERE outbox.host = hosts.host AND outbox.due_at <= $1
        ORDER BY outbox.due_at
        LIMIT coalesce(lane.free, $3)
        FOR UPDATE SKIP LOCKED
    ) AS owed
    WHERE hosts.host IS NOT NULL
    ORDER BY owed.due_at
    LIMIT $2
), claimed AS (
    UPDATE outbox
    SET attempt = attempt + 1, claimed = true, due_at = $1 + make_interval(secs => $6)
    WHERE id = ANY(ARRAY(SELECT id FROM due))
    RETURNING outbox.*
)
SELECT claimed.*, callback.secret AS callback_secret, endpoint.secret, endpoint.previous_secret,
    endpoint.previous_secret_until > $1 AS previous_is_valid,
    endpoint.id IS NOT NULL AS endpoint_exists, endpoint.disabled_at IS NOT NULL AS endpoint_disabled
FROM claimed
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = claimed.endpoint_id
LEFT JOIN callback_secrets AS callback ON callback.tenant_id = claimed.tenant_id AND claimed.endpoint_id IS NULL
ORDER BY claimed.id;

-- name: finish_owed
-- Delivered, or dead for good. Nothing happens when the lease has passed to another deliverer.
WITH done AS (
    DELETE FROM outbox WHERE id = $1 AND attempt = $2 RETURNING *
)
INSERT INTO deliveries (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures, state, reason, finished_at)
SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures + $3, $4, $5, $6
FROM done
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: retry_owed
-- Due again later. Nothing happens when the lease has passed to another deliverer.
UPDATE outbox SET claimed = false, failures = failures + 1, due_at = $3 WHERE id = $1 AND attempt = $2 RETURNING id;

-- name: log_attempt
-- A request was sent, whoever holds the lease by now.
INSERT INTO delivery_attempts (
    delivery_id, attempt, tenant_id, started_at, duration_s, url, request_headers, request_body,
    address, status, response_headers, response_body, error_type, error_detail
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT (delivery_id, attempt) DO NOTHING;

-- name: next_owed_in_s
-- How long a deliverer may sleep; null when nothing is owed.
SELECT extract(epoch FROM min(due_at) - coalesce($1::timestamptz, clock_timestamp()))::double precision FROM outbox;

-- name: list_deliveries
-- Owed and finished ones together, newest first.
SELECT * FROM (
    (SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, 'pending' AS state, attempt, failures,
        NULL AS reason, due_at, NULL::timestamptz AS finished_at
    FROM outbox
    WHERE tenant_id = $1 AND ($2::uuid IS NULL OR endpoint_id = $2) AND ($3::text IS NULL OR $3 = 'pending')
        AND ($4::timestamptz IS NULL OR (occurred_at, id) < ($4, $5::uuid))
    ORDER BY occurred_at DESC, id DESC
    LIMIT $6)
    UNION ALL
    (SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, state, attempt, failures, reason,
        NULL::timestamptz AS due_at, finished_at
    FROM deliveries
    WHERE tenant_id = $1 AND ($2::uuid IS NULL OR endpoint_id = $2) AND ($3::text IS NULL OR state = $3)
        AND ($4::timestamptz IS NULL OR (occurred_at, id) < ($4, $5::uuid))
    ORDER BY occurred_at DESC, id DESC
    LIMIT $6)
) AS delivery
ORDER BY occurred_at DESC, id DESC
LIMIT $6;

-- name: get_delivery
-- Wherever it lies.
SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, 'pending' AS state, attempt, failures,
    NULL AS reason, due_at, NULL::timestamptz AS finished_at
FROM outbox WHERE tenant_id = $1 AND id = $2
UNION ALL
SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, state, attempt, failures, reason,
    NULL::timestamptz AS due_at, finished_at
FROM deliveries WHERE tenant_id = $1 AND id = $2;

-- name: list_attempts
-- The log of one delivery, oldest first.
SELECT * FROM delivery_attempts WHERE tenant_id = $1 AND delivery_id = $2 ORDER BY attempt;

-- name: owe_again
-- A finished delivery becomes owed again under its own id, with its attempts counted on and a fresh budget.
WITH again AS (
    DELETE FROM deliveries WHERE tenant_id = $1 AND id = $2 RETURNING *
)
INSERT INTO outbox (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, due_at)
SELECT again.id, again.tenant_id, again.endpoint_id, coalesce(endpoint.url, again.url), again.type, again.occurred_at,
    again.data, again.attempt, coalesce($3::timestamptz, now())
FROM again
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = again.endpoint_id
RETURNING id;

-- name: hasten
-- A pending delivery that nobody is sending right now is due at once, with a fresh budget.
UPDATE outbox SET due_at = coalesce($3::timestamptz, now()), failures = 0
WHERE tenant_id = $1 AND id = $2 AND NOT claimed
RETURNING id;

-- name: prune_deliveries
-- Retention, in bites.
DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE finished_at < $1 ORDER BY finished_at LIMIT $2);

-- name: prune_attempts
-- Lines of the log go by their own age: a delivery is never older than its first attempt.
DELETE FROM delivery_attempts
WHERE (delivery_id, attempt) IN (
    SELECT delivery_id, attempt FROM delivery_attempts WHERE started_at < $1 ORDER BY started_at LIMIT $2
);
