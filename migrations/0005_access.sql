-- Who may call the API. Only a hash of a key's secret is stored; the prefix finds the row.

CREATE TABLE api_keys (
    id            uuid PRIMARY KEY,
    tenant_id     int NOT NULL REFERENCES tenants (id),
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    prefix        text NOT NULL UNIQUE,
    secret_hash   bytea NOT NULL CHECK (length(secret_hash) = 32),
    role          text NOT NULL CHECK (role IN ('reader', 'submitter', 'operator', 'admin')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    last_used_at  timestamptz,
    revoked_at    timestamptz
);
CREATE INDEX api_keys_list ON api_keys (tenant_id, id);
