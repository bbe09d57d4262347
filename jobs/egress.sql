-- name: find_tenant
-- A name that nobody made a tenant of is no tenant.
SELECT id FROM tenants WHERE name = $1;

-- name: entries_of
-- Read by each crawl and delivery as it begins: an entry that was taken away counts for no later one.
SELECT entry FROM tenant_egress WHERE tenant_id = $1 ORDER BY entry;

-- name: entries_of_all
-- What an API process keeps in memory, since it judges every URL that is submitted.
SELECT tenant_id, array_agg(entry ORDER BY entry) AS entries FROM tenant_egress GROUP BY tenant_id;

-- name: list_entries
-- For people; a tenant has a hundred at most.
SELECT entry, note, created_at FROM tenant_egress WHERE tenant_id = $1 ORDER BY entry;

-- name: count_others
-- How many entries the tenant has beside one that may be written again.
SELECT count(*) FROM tenant_egress WHERE tenant_id = $1 AND entry <> $2;

-- name: allow_entry
-- Idempotent: the same entry again only changes its note.
INSERT INTO tenant_egress (tenant_id, entry, note) VALUES ($1, $2, $3)
ON CONFLICT (tenant_id, entry) DO UPDATE SET note = excluded.note
RETURNING entry, note, created_at;

-- name: remove_entry
-- Answers the entry if it was there.
DELETE FROM tenant_egress WHERE tenant_id = $1 AND entry = $2 RETURNING entry;
