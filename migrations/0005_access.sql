-- Who may call the API, how much of it, and what they changed. Only hashes of keys' secrets are stored; the prefix
-- finds the row (docs/decisions/0027).

-- `rotations` counts the secrets before this one. The last of them is `previous_hash`, and holds until `previous_until`.
CREATE TABLE api_keys (
    id              uuid PRIMARY KEY,
    tenant_id       int NOT NULL REFERENCES tenants (id),
    name            text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    prefix          text NOT NULL UNIQUE,
    secret_hash     bytea NOT NULL CHECK (length(secret_hash) = 32),
    rotations       int NOT NULL DEFAULT 0 CHECK (rotations >= 0),
    previous_hash   bytea CHECK (length(previous_hash) = 32),
    previous_until  timestamptz,
    role            text NOT NULL CHECK (role IN ('reader', 'submitter', 'operator', 'admin')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz,
    last_used_at    timestamptz,
    revoked_at      timestamptz,
    CHECK (num_nulls(previous_hash, previous_until) IN (0, 2))
);
CREATE INDEX api_keys_list ON api_keys (tenant_id, id);

-- What was granted to a tenant otherwise than by default (api/quotas.py); null is the default.
CREATE TABLE quotas (
    tenant_id            int PRIMARY KEY REFERENCES tenants (id),
    live_jobs            bigint CHECK (live_jobs >= 0),
    documents            bigint CHECK (documents >= 0),
    stored_bytes         bigint CHECK (stored_bytes >= 0),
    schedules            bigint CHECK (schedules >= 0),
    webhooks             bigint CHECK (webhooks >= 0),
    open_batches         bigint CHECK (open_batches >= 0),
    streams              bigint CHECK (streams >= 0),
    requests_per_minute  bigint CHECK (requests_per_minute > 0)
);

-- How many requests of a tenant's minute the API processes have taken in hand, some at a time; `granted` is what the last
-- of them got. Only tenants with a quota of requests have a row.
CREATE TABLE request_windows (
    tenant_id  int PRIMARY KEY REFERENCES tenants (id),
    began_at   timestamptz NOT NULL,
    used       bigint NOT NULL,
    granted    bigint NOT NULL
) WITH (fillfactor = 50);

-- Administrative acts, each written by the transaction that did it. tenant_id is the actor's; the key's name is kept, since
-- the log outlives the key.
CREATE TABLE audit (
    id          uuid PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    tenant_id   int NOT NULL REFERENCES tenants (id),
    key_id      uuid NOT NULL,
    key_name    text NOT NULL,
    action      text NOT NULL,
    target      text NOT NULL,
    details     jsonb NOT NULL DEFAULT '{}',
    address     text,
    request_id  text
);
CREATE INDEX audit_list ON audit (tenant_id, id);
CREATE INDEX audit_age ON audit (at);

-- Append-only for everybody who writes through the product: nothing is changed, and nothing of the last day forgotten.
CREATE FUNCTION refuse_to_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION refuse_to_forget();
CREATE TRIGGER audit_kept BEFORE DELETE ON audit FOR EACH ROW WHEN (old.at > now() - interval '1 day')
EXECUTE FUNCTION refuse_to_forget();
CREATE TRIGGER audit_whole BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_forget();
