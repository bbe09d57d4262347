-- What is owed, from the claim to its end, and the circuits of its lanes (docs/decisions/0008).

-- name: claim_owed
-- A fair share of what is due: of each lane at most as many as it has free, one of a lane that has not been known to
-- answer, and of all such lanes together no more than $7: receivers that hang, however many, leave places to those
-- that do not. Of a lane whose circuit is open one, when its probe is due; that it is under way is noted by moving
-- the next one to the lease's end, and whoever locks the circuit first has it. Reads one index range a lane, however
-- long the backlog; by an array of ids and one look at a lane's head, since a join would read the whole table while its
-- statistics are old.
-- A claim is a lease: a dead deliverer's rows are due again when it ends.
WITH RECURSIVE lanes AS (
    (SELECT lane FROM outbox ORDER BY lane LIMIT 1)
    UNION ALL
    SELECT (SELECT outbox.lane FROM outbox WHERE outbox.lane > lanes.lane ORDER BY outbox.lane LIMIT 1)
    FROM lanes
    WHERE lanes.lane IS NOT NULL
), probed AS (
    UPDATE webhook_circuits SET probe_at = $1 + make_interval(secs => $6)
    WHERE lane = ANY(ARRAY(
        SELECT circuit.lane
        FROM webhook_circuits AS circuit
        WHERE circuit.probe_at <= $1
            AND (SELECT due_at FROM outbox WHERE outbox.lane = circuit.lane ORDER BY due_at LIMIT 1) <= $1
        ORDER BY circuit.probe_at
        LIMIT least($2::int, $7::int)
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING lane
), due AS MATERIALIZED (
    SELECT owed.id,
        row_number() OVER (PARTITION BY coalesce(known.is_proven, false)
            ORDER BY probed.lane IS NULL, owed.due_at) AS turn,
        coalesce(known.is_proven, false) AS is_proven
    FROM lanes
    LEFT JOIN unnest($3::text[], $4::int[], $5::boolean[]) AS known (lane, free, is_proven) ON known.lane = lanes.lane
    LEFT JOIN webhook_circuits AS circuit ON circuit.lane = lanes.lane AND circuit.probe_at IS NOT NULL
    LEFT JOIN probed ON probed.lane = lanes.lane
    CROSS JOIN LATERAL (
        SELECT id, due_at
        FROM outbox
        WHERE outbox.lane = lanes.lane AND outbox.due_at <= $1
        ORDER BY outbox.due_at
        LIMIT CASE
            WHEN probed.lane IS NOT NULL THEN 1
            WHEN circuit.lane IS NOT NULL THEN 0
            ELSE coalesce(known.free, 1)
        END
        FOR UPDATE SKIP LOCKED
    ) AS owed
    WHERE lanes.lane IS NOT NULL
), claimed AS (
    UPDATE outbox
    SET attempt = attempt + 1, claimed = true, due_at = $1 + make_interval(secs => $6)
    WHERE id = ANY(ARRAY(SELECT id FROM due WHERE is_proven OR turn <= $7 ORDER BY turn LIMIT $2))
    RETURNING outbox.*
)
SELECT claimed.*, $1::timestamptz AS claimed_at, callback.secret AS callback_secret, endpoint.secret,
    coalesce(endpoint.previous_secret, callback.previous_secret) AS previous_secret,
    coalesce(endpoint.previous_secret_until, callback.previous_secret_until) > $1 AS previous_is_valid,
    CASE
        WHEN claimed.endpoint_id IS NULL THEN NULL
        WHEN endpoint.id IS NULL THEN 'endpoint_deleted'
        WHEN endpoint.disabled_at IS NOT NULL AND claimed.type <> 'webhook.test' THEN 'endpoint_disabled'
    END AS undeliverable
FROM claimed
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = claimed.endpoint_id
LEFT JOIN callback_secrets AS callback ON callback.tenant_id = claimed.tenant_id AND claimed.endpoint_id IS NULL
ORDER BY claimed.id;

-- name: deliver_owed
-- Accepted: out of what is owed, into the log, and nothing is held against its lanes any more. One statement, since
-- nearly all deliveries end so. Nothing is moved when the lease has passed to another deliverer.
WITH done AS (
    DELETE FROM outbox WHERE id = $1 AND attempt = $2 RETURNING *
), closed AS (
    DELETE FROM webhook_circuits WHERE lane = ANY($15::text[])
), logged AS (
    INSERT INTO delivery_attempts (
        delivery_id, attempt, tenant_id, started_at, duration_s, url, request_headers, request_body,
        address, status, response_headers, response_body, error_type, error_detail
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    ON CONFLICT (delivery_id, attempt) DO NOTHING
)
INSERT INTO deliveries (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures, state, finished_at)
SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures, 'delivered', $16
FROM done
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: bury_owed
-- Dead for good. Nothing happens when the lease has passed to another deliverer.
WITH done AS (
    DELETE FROM outbox WHERE id = $1 AND attempt = $2 RETURNING *
)
INSERT INTO deliveries (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures, state, reason, finished_at)
SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures + 1, 'dead', $3, $4
FROM done
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: discard_owed
-- Unsent: the claimed one, and others of its endpoint, a thousand at a time, since none of them will be sent.
WITH done AS (
    DELETE FROM outbox
    WHERE (id <> $1 OR attempt = $2) AND id = ANY(ARRAY(
        SELECT $1::uuid
        UNION ALL
        SELECT others.id
        FROM (
            SELECT id FROM outbox
            WHERE endpoint_id = $3 AND NOT claimed AND type <> 'webhook.test'
            LIMIT 1000
            FOR UPDATE SKIP LOCKED
        ) AS others
    ))
    RETURNING *
)
INSERT INTO deliveries (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures, state, reason, finished_at)
SELECT id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, failures, 'dead', $4, $5
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

-- name: look
-- What there is to do, asked often and read-only: events to fan out, when the next delivery is due (null: none is owed),
-- whether a redelivery waits, and how many circuits are open, waiting for their probe or with one due.
SELECT coalesce($1::timestamptz, clock_timestamp()) AS now,
    EXISTS (
        SELECT FROM webhook_cursor AS cursor
        WHERE cursor.xid >= pg_snapshot_xmin(pg_current_snapshot()) OR EXISTS (
            SELECT FROM events
            WHERE (events.xid, events.n) > (cursor.xid, cursor.n)
                AND events.xid < pg_snapshot_xmin(pg_current_snapshot()))
    ) AS has_events,
    (SELECT extract(epoch FROM min(due_at) - coalesce($1::timestamptz, clock_timestamp()))::double precision
        FROM outbox) AS due_in_s,
    EXISTS (SELECT FROM redeliveries WHERE finished_at IS NULL) AS has_redeliveries,
    circuits.waiting, circuits.due
FROM (
    SELECT count(*) FILTER (WHERE probe_at > coalesce($1::timestamptz, clock_timestamp())) AS waiting,
        count(*) FILTER (WHERE probe_at <= coalesce($1::timestamptz, clock_timestamp())) AS due
    FROM webhook_circuits
    WHERE probe_at IS NOT NULL
) AS circuits;

-- name: fail_lane
-- One more failure in a row. The row is ours until the end of the transaction.
INSERT INTO webhook_circuits AS circuit (lane, failures, failing_since, failed_at) VALUES ($1, 1, $2, $2)
ON CONFLICT (lane) DO UPDATE SET failures = circuit.failures + 1, failed_at = $2
RETURNING failures, failing_since, probe_at;

-- name: open_lane
-- One delivery may be tried then; until it has succeeded, no other.
UPDATE webhook_circuits SET probe_at = $2 WHERE lane = $1;

-- name: close_lanes
-- It answered; or nothing is to be held against it any more.
DELETE FROM webhook_circuits WHERE lane = ANY($1::text[]);

-- name: hasten_lanes
-- Somebody knows better: the next probe may go now. Locked in one order, since others may name several as well.
UPDATE webhook_circuits SET probe_at = coalesce($2::timestamptz, now())
WHERE lane = ANY(ARRAY(
    SELECT lane FROM webhook_circuits
    WHERE lane = ANY($1::text[]) AND probe_at > coalesce($2::timestamptz, now())
    ORDER BY lane
    FOR UPDATE
));

-- name: get_lanes
-- What is held against these lanes.
SELECT lane, failures, failing_since, probe_at FROM webhook_circuits WHERE lane = ANY($1::text[]);

-- name: prune_lanes
-- Lanes that nothing has been sent to for long are not failing, but forgotten.
DELETE FROM webhook_circuits
WHERE lane = ANY(ARRAY(SELECT lane FROM webhook_circuits WHERE failed_at < $1 ORDER BY failed_at LIMIT $2));
