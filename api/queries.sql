-- name: key_by_prefix
-- The prefix is public; what proves the caller is the hash of the secret, compared in constant time.
SELECT k.id, k.tenant_id, k.name, k.prefix, k.secret_hash, k.rotations, k.previous_until, k.role, k.created_at,
       k.expires_at, k.last_used_at, k.revoked_at, t.name AS tenant,
       CASE WHEN k.previous_until > now() THEN k.previous_hash END AS previous_hash,
       (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_valid
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.prefix = $1;

-- name: insert_key
-- The secret itself is never sent here.
INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, role, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: rotate_key
-- The prefix stays: whoever looks for the key by what stands in a log or a configuration still finds it.
UPDATE api_keys SET previous_hash = secret_hash, previous_until = now() + $4, secret_hash = $3, rotations = rotations + 1
WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
RETURNING prefix;

-- name: keys_held
-- Which of the secrets that open streams began with still hold, for all of them at once.
SELECT h.id, h.rotation FROM unnest($1::uuid[], $2::int[]) AS h (id, rotation) JOIN api_keys k ON k.id = h.id
WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
  AND (k.rotations = h.rotation OR (k.rotations = h.rotation + 1 AND k.previous_until > now()));

-- name: tenant_of_name
-- Created on first use: a key is what makes a tenant reachable. The no-op update returns the row that exists.
INSERT INTO tenants (id, name)
SELECT coalesce(max(id), 0) + 1, $1 FROM tenants
ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING id;

-- name: lock_access
-- One writer of tenants and first keys at a time; freed at the end of the transaction.
SELECT pg_advisory_xact_lock($1);

-- name: list_keys
-- A tenant's keys in the order of their creation, revoked ones included, after a cursor.
SELECT k.id, k.tenant_id, k.name, k.prefix, k.secret_hash, k.rotations, k.previous_until, k.role, k.created_at,
       k.expires_at, k.last_used_at, k.revoked_at, t.name AS tenant,
       CASE WHEN k.previous_until > now() THEN k.previous_hash END AS previous_hash,
       (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_valid
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.tenant_id = $1 AND ($2::uuid IS NULL OR k.id > $2)
ORDER BY k.id
LIMIT $3;

-- name: key_by_id
-- One key of a tenant.
SELECT k.id, k.tenant_id, k.name, k.prefix, k.secret_hash, k.rotations, k.previous_until, k.role, k.created_at,
       k.expires_at, k.last_used_at, k.revoked_at, t.name AS tenant,
       CASE WHEN k.previous_until > now() THEN k.previous_hash END AS previous_hash,
       (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_valid
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.tenant_id = $1 AND k.id = $2;

-- name: find_tenant
-- A tenant that there is.
SELECT id FROM tenants WHERE name = $1;

-- name: revoke_key
-- Only the first time: its time stays, and the audit log tells it once.
UPDATE api_keys SET revoked_at = now() WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL
RETURNING id;

-- name: touch_keys
-- Last uses of many keys at once, written every minute or so, never while a request waits.
UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, u.at)
FROM unnest($1::uuid[], $2::timestamptz[]) AS u (id, at)
WHERE k.id = u.id;

-- name: has_schema
-- Readiness: the connection works, and the tables are there.
SELECT to_regclass('jobs') IS NOT NULL AND to_regclass('api_keys') IS NOT NULL;

-- name: lock_quota
-- Who adds something that is counted waits for whoever else in the tenant does; freed at the end of the transaction.
SELECT pg_advisory_xact_lock($1, $2);

-- name: count_live_jobs
-- What counts against quotas is read here from others' tables, never written. Counting ends at the quota.
SELECT count(*) FROM (SELECT FROM jobs WHERE tenant_id = $1 LIMIT $2) AS counted;

-- name: count_documents
-- Deleted ones are hidden and wait for their purge: they are the tenant's no more.
SELECT count(*) FROM (SELECT FROM documents WHERE tenant_id = $1 AND deleted_at IS NULL LIMIT $2) AS counted;

-- name: count_stored_bytes
-- The texts as they are stored: reading their size unpacks none of them.
SELECT coalesce(sum(pg_column_size(text)), 0)::bigint FROM contents WHERE tenant_id = $1;

-- name: count_schedules
-- Paused ones count: they are resumed without being asked again.
SELECT count(*) FROM (SELECT FROM schedules WHERE tenant_id = $1 LIMIT $2) AS counted;

-- name: count_webhooks
-- Disabled ones count, too.
SELECT count(*) FROM (SELECT FROM webhook_endpoints WHERE tenant_id = $1 LIMIT $2) AS counted;

-- name: count_open_batches
-- Batches that still take parts, by an index of them alone.
SELECT count(*) FROM (SELECT FROM batches WHERE tenant_id = $1 AND state = 'open' LIMIT $2) AS counted;

-- name: usage
-- All that quotas bound, for whoever asks how much is left.
SELECT (SELECT count(*) FROM jobs WHERE tenant_id = $1) AS live_jobs,
       (SELECT count(*) FROM documents WHERE tenant_id = $1 AND deleted_at IS NULL) AS documents,
       (SELECT coalesce(sum(pg_column_size(text)), 0)::bigint FROM contents WHERE tenant_id = $1) AS stored_bytes,
       (SELECT count(*) FROM schedules WHERE tenant_id = $1) AS schedules,
       (SELECT count(*) FROM webhook_endpoints WHERE tenant_id = $1) AS webhooks,
       (SELECT count(*) FROM batches WHERE tenant_id = $1 AND state = 'open') AS open_batches;

-- name: quotas_of_tenant
-- A tenant by name; columns that nobody has set are null.
SELECT t.id AS tenant_id, t.name AS tenant, q.live_jobs, q.documents, q.stored_bytes, q.schedules, q.webhooks,
       q.open_batches, q.streams, q.requests_per_minute
FROM tenants t LEFT JOIN quotas q ON q.tenant_id = t.id
WHERE t.name = $1;

-- name: list_tenants
-- Tenants by name, after a cursor.
SELECT t.id AS tenant_id, t.name AS tenant, q.live_jobs, q.documents, q.stored_bytes, q.schedules, q.webhooks,
       q.open_batches, q.streams, q.requests_per_minute
FROM tenants t LEFT JOIN quotas q ON q.tenant_id = t.id
WHERE $1::text IS NULL OR t.name > $1
ORDER BY t.name LIMIT $2;

-- name: put_quotas
-- All of them at once: null is the default.
INSERT INTO quotas AS q (tenant_id, live_jobs, documents, stored_bytes, schedules, webhooks, open_batches, streams,
                         requests_per_minute)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (tenant_id) DO UPDATE SET live_jobs = excluded.live_jobs, documents = excluded.documents,
    stored_bytes = excluded.stored_bytes, schedules = excluded.schedules, webhooks = excluded.webhooks,
    open_batches = excluded.open_batches, streams = excluded.streams,
    requests_per_minute = excluded.requests_per_minute;

-- name: lease_requests
-- Takes up to $3 requests of the $2 that the tenant has in this minute. The row of an earlier minute begins anew; `granted`
-- is 0 once all were taken.
INSERT INTO request_windows AS w (tenant_id, began_at, used, granted)
VALUES ($1, date_trunc('minute', clock_timestamp()), least($3::bigint, $2::bigint), least($3::bigint, $2::bigint))
ON CONFLICT (tenant_id) DO UPDATE SET
    began_at = greatest(w.began_at, excluded.began_at),
    granted = CASE WHEN w.began_at < excluded.began_at THEN excluded.granted
                   ELSE greatest(0, least($3::bigint, $2::bigint - w.used)) END,
    used = CASE WHEN w.began_at < excluded.began_at THEN excluded.used
                ELSE greatest(w.used, least(w.used + $3::bigint, $2::bigint)) END
RETURNING granted, greatest(0, $2::bigint - used) AS remaining,
    extract(epoch FROM began_at + interval '1 minute' - clock_timestamp())::float8 AS ends_in_s;

-- name: insert_act
-- One administrative act, in the transaction that does it.
INSERT INTO audit (id, tenant_id, key_id, key_name, action, target, details, address, request_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: list_acts
-- A tenant's acts, newest first, before a cursor.
SELECT id, at, key_id, key_name, action, target, details, address, request_id FROM audit
WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL OR action = $3)
  AND ($4::uuid IS NULL OR key_id = $4)
ORDER BY id DESC LIMIT $5;

-- name: prune_acts
-- What retention lets go, some at a time; never what is younger than a day (see the table's triggers).
DELETE FROM audit
WHERE id = ANY(ARRAY(SELECT id FROM audit WHERE at < now() - make_interval(days => $1) ORDER BY at LIMIT $2));
