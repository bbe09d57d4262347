-- name: key_by_prefix
-- The prefix is public; what proves the caller is the hash of the secret, compared in constant time.
SELECT k.id, k.tenant_id, k.name, k.prefix, k.secret_hash, k.role, k.created_at, k.expires_at,
       k.last_used_at, k.revoked_at, t.name AS tenant,
       (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_valid
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.prefix = $1;

-- name: insert_key
-- The secret itself is never sent here.
INSERT INTO api_keys (id, tenant_id, name, prefix, secret_hash, role, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING created_at;

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
SELECT k.id, k.tenant_id, k.name, k.prefix, k.secret_hash, k.role, k.created_at, k.expires_at,
       k.last_used_at, k.revoked_at, t.name AS tenant,
       (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_valid
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.tenant_id = $1 AND ($2::uuid IS NULL OR k.id > $2)
ORDER BY k.id
LIMIT $3;

-- name: key_by_id
-- One key of a tenant.
SELECT k.id, k.tenant_id, k.name, k.prefix, k.secret_hash, k.role, k.created_at, k.expires_at,
       k.last_used_at, k.revoked_at, t.name AS tenant,
       (k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_valid
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.tenant_id = $1 AND k.id = $2;

-- name: revoke_key
-- Idempotent: the first revocation's time stays.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE tenant_id = $1 AND id = $2
RETURNING prefix;

-- name: touch_keys
-- Last uses of many keys at once, written every minute or so, never while a request waits.
UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, u.at)
FROM unnest($1::uuid[], $2::timestamptz[]) AS u (id, at)
WHERE k.id = u.id;

-- name: has_schema
-- Readiness: the connection works, and the tables are there.
SELECT to_regclass('jobs') IS NOT NULL AND to_regclass('api_keys') IS NOT NULL;
