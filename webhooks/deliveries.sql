-- What was and is to be delivered: lists, the log, and deliveries that are sent again.

-- name: list_deliveries
-- Owed and finished ones together, newest first. At most 2,000 rows are looked at, however few of them match; the last
-- one looked at is then told, so that the next page begins behind it. A way in for each index: what does not apply
-- reads nothing, and a limit spelled out leads into the index without statistics, too.
WITH seen AS MATERIALIZED (
    SELECT *, ($2::uuid IS NULL OR endpoint_id = $2) AND ($3::text IS NULL OR state = $3)
        AND ($4::text IS NULL OR type = $4) AS matches
    FROM (
        (SELECT id, endpoint_id, type, occurred_at, 'pending' AS state FROM outbox
        WHERE $2::uuid IS NULL AND ($3::text IS NULL OR $3 = 'pending') AND tenant_id = $1 AND (occurred_at, id) < ($5::timestamptz, $6::uuid)
            AND ($7::timestamptz IS NULL OR occurred_at >= $7)
        ORDER BY occurred_at DESC, id DESC LIMIT 2000)
        UNION ALL
        (SELECT id, endpoint_id, type, occurred_at, 'pending' AS state FROM outbox
        WHERE ($3::text IS NULL OR $3 = 'pending') AND endpoint_id = $2 AND tenant_id = $1 AND (occurred_at, id) < ($5::timestamptz, $6::uuid)
            AND ($7::timestamptz IS NULL OR occurred_at >= $7)
        ORDER BY occurred_at DESC, id DESC LIMIT 2000)
        UNION ALL
        (SELECT id, endpoint_id, type, occurred_at, state AS state FROM deliveries
        WHERE $2::uuid IS NULL AND ($3::text IS NULL OR $3 = 'delivered') AND tenant_id = $1 AND (occurred_at, id) < ($5::timestamptz, $6::uuid)
            AND ($7::timestamptz IS NULL OR occurred_at >= $7)
        ORDER BY occurred_at DESC, id DESC LIMIT 2000)
        UNION ALL
        (SELECT id, endpoint_id, type, occurred_at, state AS state FROM deliveries
        WHERE ($3::text IS NULL OR $3 = 'delivered') AND endpoint_id = $2 AND tenant_id = $1 AND (occurred_at, id) < ($5::timestamptz, $6::uuid)
            AND ($7::timestamptz IS NULL OR occurred_at >= $7)
        ORDER BY occurred_at DESC, id DESC LIMIT 2000)
        UNION ALL
        (SELECT id, endpoint_id, type, occurred_at, state AS state FROM deliveries
        WHERE $3 = 'dead' AND tenant_id = $1 AND state = 'dead' AND (occurred_at, id) < ($5::timestamptz, $6::uuid)
            AND ($7::timestamptz IS NULL OR occurred_at >= $7)
        ORDER BY occurred_at DESC, id DESC LIMIT 2000)
    ) AS ways
    ORDER BY occurred_at DESC, id DESC
    LIMIT 2000
), numbered AS (
    SELECT id, occurred_at, matches, count(*) FILTER (WHERE matches) OVER newest AS nth,
        row_number() OVER newest = 2000 AS is_last
    FROM seen
    WINDOW newest AS (ORDER BY occurred_at DESC, id DESC)
), page AS (
    SELECT * FROM numbered WHERE nth <= $8 AND (matches OR is_last)
)
SELECT page.matches, id, page.occurred_at, coalesce(done.tenant_id, owed.tenant_id) AS tenant_id,
    coalesce(done.endpoint_id, owed.endpoint_id) AS endpoint_id, coalesce(done.url, owed.url) AS url,
    coalesce(done.type, owed.type) AS type, coalesce(done.data, owed.data) AS data,
    coalesce(done.state, 'pending') AS state, coalesce(done.attempt, owed.attempt) AS attempt,
    coalesce(done.failures, owed.failures) AS failures, done.reason, owed.due_at, done.finished_at
FROM page
LEFT JOIN deliveries AS done USING (id)
LEFT JOIN outbox AS owed USING (id)
ORDER BY page.occurred_at DESC, id DESC;

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
-- A finished delivery becomes owed again under its own id, with its attempts counted on and a fresh budget; not one
-- whose endpoint is gone or disabled.
WITH again AS (
    DELETE FROM deliveries AS done
    WHERE tenant_id = $1 AND id = $2 AND (endpoint_id IS NULL OR EXISTS (
        SELECT FROM webhook_endpoints AS endpoint WHERE endpoint.id = done.endpoint_id AND endpoint.disabled_at IS NULL))
    RETURNING *
)
INSERT INTO outbox (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, due_at)
SELECT again.id, again.tenant_id, again.endpoint_id, coalesce(endpoint.url, again.url), again.type, again.occurred_at,
    again.data, again.attempt, coalesce($3::timestamptz, now())
FROM again
LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = again.endpoint_id
RETURNING lane;

-- name: hasten
-- A pending delivery that nobody is sending right now is due at once, with a fresh budget.
UPDATE outbox SET due_at = coalesce($3::timestamptz, now()), failures = 0
WHERE tenant_id = $1 AND id = $2 AND NOT claimed
RETURNING lane;

-- name: count_deliveries
-- Those that a redelivery would send again now, counted up to $7.
SELECT count(*) FROM (
    SELECT FROM deliveries AS done
    WHERE $3 <> 'pending' AND tenant_id = $1 AND ($2::uuid IS NULL OR endpoint_id = $2) AND state = $3
        AND ($4::text IS NULL OR type = $4)
        AND ($5::timestamptz IS NULL OR occurred_at >= $5) AND ($6::timestamptz IS NULL OR occurred_at < $6)
        AND (endpoint_id IS NULL OR EXISTS (
            SELECT FROM webhook_endpoints AS endpoint WHERE endpoint.id = done.endpoint_id AND endpoint.disabled_at IS NULL))
    UNION ALL
    SELECT FROM outbox AS owed
    WHERE $3 = 'pending' AND tenant_id = $1 AND ($2::uuid IS NULL OR endpoint_id = $2) AND NOT claimed
        AND ($4::text IS NULL OR type = $4)
        AND ($5::timestamptz IS NULL OR occurred_at >= $5) AND ($6::timestamptz IS NULL OR occurred_at < $6)
    LIMIT $7
) AS matching;

-- name: accept_redelivery
-- From here on it is durable: a deliverer works it off.
INSERT INTO redeliveries (id, tenant_id, filter, actor, expected, created_at)
VALUES ($1, $2, $3, $4, $5, coalesce($6::timestamptz, clock_timestamp()))
RETURNING *;

-- name: get_redelivery
-- Another tenant's does not exist.
SELECT * FROM redeliveries WHERE tenant_id = $1 AND id = $2;

-- name: list_redeliveries
-- Newest first.
SELECT * FROM redeliveries WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3;

-- name: cancel_redelivery
-- What was sent stays sent.
UPDATE redeliveries SET state = 'cancelled', finished_at = coalesce($3::timestamptz, clock_timestamp())
WHERE tenant_id = $1 AND id = $2 AND finished_at IS NULL;

-- name: take_redelivery
-- The oldest that nobody else is working on, for as long as the transaction lasts.
SELECT * FROM redeliveries WHERE finished_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: redeliver_slice
-- Of the next 2,000 finished deliveries those that match become owed again, each under its own id. What was finished
-- after the redelivery was accepted ($7) is not sent once more.
WITH seen AS MATERIALIZED (
    SELECT id, occurred_at, finished_at, endpoint_id, type, state
    FROM deliveries
    WHERE tenant_id = $1 AND (occurred_at, id) > ($5::timestamptz, $6::uuid) AND occurred_at < $8
    ORDER BY occurred_at, id
    LIMIT 2000
), again AS (
    DELETE FROM deliveries AS done
    WHERE id = ANY(ARRAY(
            SELECT id FROM seen
            WHERE finished_at <= $7 AND ($2::uuid IS NULL OR endpoint_id = $2) AND state = $3
                AND ($4::text IS NULL OR type = $4)))
        AND finished_at <= $7
        AND (endpoint_id IS NULL OR EXISTS (
            SELECT FROM webhook_endpoints AS endpoint WHERE endpoint.id = done.endpoint_id AND endpoint.disabled_at IS NULL))
    RETURNING *
), owed AS (
    INSERT INTO outbox (id, tenant_id, endpoint_id, url, type, occurred_at, data, attempt, due_at)
    SELECT again.id, again.tenant_id, again.endpoint_id, coalesce(endpoint.url, again.url), again.type,
        again.occurred_at, again.data, again.attempt, coalesce($9::timestamptz, now())
    FROM again
    LEFT JOIN webhook_endpoints AS endpoint ON endpoint.id = again.endpoint_id
    RETURNING lane
)
SELECT (SELECT count(*) FROM seen) AS read, (SELECT count(*) FROM owed) AS done,
    (SELECT array_agg(DISTINCT lane) FROM owed) AS lanes, last.occurred_at AS after_at, last.id AS after_id
FROM (SELECT) AS one
LEFT JOIN (SELECT occurred_at, id FROM seen ORDER BY occurred_at DESC, id DESC LIMIT 1) AS last ON true;

-- name: hasten_slice
-- The same of deliveries that wait for another attempt.
WITH seen AS MATERIALIZED (
    SELECT id, occurred_at, endpoint_id, type
    FROM outbox
    WHERE tenant_id = $1 AND (occurred_at, id) > ($5::timestamptz, $6::uuid) AND occurred_at < $8
    ORDER BY occurred_at, id
    LIMIT 2000
), owed AS (
    UPDATE outbox SET due_at = coalesce($9::timestamptz, now()), failures = 0
    WHERE id = ANY(ARRAY(
            SELECT id FROM seen WHERE ($2::uuid IS NULL OR endpoint_id = $2) AND ($4::text IS NULL OR type = $4)))
        AND NOT claimed AND $3 = 'pending' AND $7::timestamptz IS NOT NULL
    RETURNING lane
)
SELECT (SELECT count(*) FROM seen) AS read, (SELECT count(*) FROM owed) AS done,
    (SELECT array_agg(DISTINCT lane) FROM owed) AS lanes, last.occurred_at AS after_at, last.id AS after_id
FROM (SELECT) AS one
LEFT JOIN (SELECT occurred_at, id FROM seen ORDER BY occurred_at DESC, id DESC LIMIT 1) AS last ON true;

-- name: advance_redelivery
-- In the transaction of the slice: a crash takes both or none.
UPDATE redeliveries
SET done = done + $2, after_at = coalesce($3, after_at), after_id = coalesce($4, after_id),
    state = CASE WHEN $5 THEN 'finished' ELSE state END, finished_at = CASE WHEN $5 THEN coalesce($6::timestamptz, clock_timestamp()) END
WHERE id = $1;

-- name: prune_deliveries
-- Retention, in bites: by an array, since a join may read the whole table.
DELETE FROM deliveries
WHERE id = ANY(ARRAY(SELECT id FROM deliveries WHERE finished_at < $1 ORDER BY finished_at LIMIT $2));

-- name: prune_attempts
-- Lines of the log go by their own age: a delivery is never older than its first attempt.
DELETE FROM delivery_attempts
WHERE ctid = ANY(ARRAY(SELECT ctid FROM delivery_attempts WHERE started_at < $1 ORDER BY started_at LIMIT $2));

-- name: prune_redeliveries
-- With the deliveries that they sent again.
DELETE FROM redeliveries
WHERE id = ANY(ARRAY(SELECT id FROM redeliveries WHERE finished_at < $1 ORDER BY finished_at LIMIT $2));
