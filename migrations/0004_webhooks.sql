-- Webhooks: endpoints, secrets, and what was delivered. `outbox` (0001) holds what is still owed: a row leaves it
-- for `deliveries` in the transaction that learns the outcome (docs/decisions/0008).

CREATE TABLE webhook_endpoints (
    id                     uuid PRIMARY KEY,
    tenant_id              int NOT NULL REFERENCES tenants (id),
    url                    text NOT NULL,
    events                 text[] NOT NULL CHECK (cardinality(events) > 0),
    description            text NOT NULL DEFAULT '',
    version                int NOT NULL DEFAULT 1,
    secret                 bytea NOT NULL,
    -- The secret before the last rotation, which signs beside the new one until it ends.
    previous_secret        bytea,
    previous_secret_until  timestamptz,
    disabled_at            timestamptz,
    disabled_reason        text,
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    CHECK (num_nulls(previous_secret, previous_secret_until) IN (0, 2)),
    CHECK (num_nulls(disabled_at, disabled_reason) IN (0, 2))
);
CREATE INDEX webhook_endpoints_list ON webhook_endpoints (tenant_id, id);

-- Signs what goes to a `callback_url`; one a tenant, made when first asked for, rotated as an endpoint's.
CREATE TABLE callback_secrets (
    tenant_id              int PRIMARY KEY REFERENCES tenants (id),
    secret                 bytea NOT NULL,
    previous_secret        bytea,
    previous_secret_until  timestamptz,
    created_at             timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nulls(previous_secret, previous_secret_until) IN (0, 2))
);

-- attempt counts every claim and is the fence of a lease; failures counts answers that were no success.
-- While `claimed`, due_at is the end of the lease. A lane is what shares its fate: an endpoint, or a sixteenth of a
-- tenant's callbacks to one host. Tests have one of their own, since they are sent whatever became of the others.
ALTER TABLE outbox
    ADD COLUMN failures int NOT NULL DEFAULT 0 CHECK (failures >= 0),
    ADD COLUMN claimed boolean NOT NULL DEFAULT false,
    ADD COLUMN lane text NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN endpoint_id IS NULL THEN 'callback ' || tenant_id::text || ' '
                || lower(coalesce(substring(url FROM '^[A-Za-z]+://([^/?#]*)'), '')) || ' '
                || left(md5(split_part(url, '?', 1)), 1)
            WHEN type = 'webhook.test' THEN 'test ' || endpoint_id::text
            ELSE 'endpoint ' || endpoint_id::text
        END
    ) STORED;
CREATE INDEX outbox_due_by_lane ON outbox (lane, due_at);
CREATE INDEX outbox_by_endpoint ON outbox (endpoint_id, occurred_at, id) WHERE endpoint_id IS NOT NULL;
CREATE INDEX outbox_list ON outbox (tenant_id, occurred_at, id);
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- Lanes whose last attempt was no success. `probe_at` set: open, and one delivery may be tried then; the others wait.
CREATE TABLE webhook_circuits (
    lane           text PRIMARY KEY,
    failures       int NOT NULL CHECK (failures > 0),
    failing_since  timestamptz NOT NULL,
    failed_at      timestamptz NOT NULL,
    probe_at       timestamptz
);
CREATE INDEX webhook_circuits_open ON webhook_circuits (probe_at) WHERE probe_at IS NOT NULL;
CREATE INDEX webhook_circuits_age ON webhook_circuits (failed_at);

CREATE TABLE deliveries (
    id           uuid PRIMARY KEY,
    tenant_id    int NOT NULL,
    endpoint_id  uuid,
    url          text NOT NULL,
    type         text NOT NULL,
    occurred_at  timestamptz NOT NULL,
    data         jsonb NOT NULL,
    attempt      int NOT NULL,
    failures     int NOT NULL,
    state        text NOT NULL CHECK (state IN ('delivered', 'dead')),
    reason       text,
    finished_at  timestamptz NOT NULL,
    CHECK ((state = 'dead') = (reason IS NOT NULL))
);
CREATE INDEX deliveries_list ON deliveries (tenant_id, occurred_at, id);
CREATE INDEX deliveries_dead ON deliveries (tenant_id, occurred_at, id) WHERE state = 'dead';
CREATE INDEX deliveries_by_endpoint ON deliveries (endpoint_id, occurred_at, id) WHERE endpoint_id IS NOT NULL;
CREATE INDEX deliveries_age ON deliveries (finished_at);

-- One row a request that was sent, or refused before it was.
CREATE TABLE delivery_attempts (
    delivery_id       uuid NOT NULL,
    attempt           int NOT NULL,
    tenant_id         int NOT NULL,
    started_at        timestamptz NOT NULL,
    duration_s        double precision NOT NULL,
    url               text NOT NULL,
    request_headers   jsonb NOT NULL,
    request_body      text NOT NULL,
    address           text,
    status            smallint,
    response_headers  jsonb,
    response_body     text,
    error_type        text,
    error_detail      text,
    PRIMARY KEY (delivery_id, attempt)
);
CREATE INDEX delivery_attempts_age ON delivery_attempts (started_at);

-- Deliveries to send again: those that match `filter` and were finished before it was accepted, moved in slices.
CREATE TABLE redeliveries (
    id           uuid PRIMARY KEY,
    tenant_id    int NOT NULL REFERENCES tenants (id),
    filter       jsonb NOT NULL,
    actor        text NOT NULL,
    state        text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'cancelled')),
    expected     int,
    done         int NOT NULL DEFAULT 0,
    after_at     timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    after_id     uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    created_at   timestamptz NOT NULL,
    finished_at  timestamptz,
    CHECK ((state = 'running') = (finished_at IS NULL))
);
CREATE INDEX redeliveries_list ON redeliveries (tenant_id, id);
CREATE INDEX redeliveries_running ON redeliveries (id) WHERE finished_at IS NULL;
CREATE INDEX redeliveries_age ON redeliveries (finished_at);

-- How far the events have been handed to endpoints, in commit order (see `events`).
CREATE TABLE webhook_cursor (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    xid       xid8 NOT NULL,
    n         bigint NOT NULL
);
INSERT INTO webhook_cursor (xid, n) VALUES ('0', 0);
