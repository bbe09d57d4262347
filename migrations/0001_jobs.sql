-- The ledger: what a job is and where it stands. A live job's state is the narrow table that holds its id:
-- `parked` = scheduled, `ready` = queued, `held` = running; a terminal job lies in `history`.
-- The wide `jobs` row is not touched by a claim, so the hot path updates no indexed row (docs/decisions/0006).

CREATE TABLE tenants (
    id          int PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    created_at  timestamptz NOT NULL DEFAULT now()
);
INSERT INTO tenants (id, name) VALUES (1, 'default');

-- What an admin of the installation lets one tenant reach beside XNAI_EGRESS_ALLOW (docs/decisions/0028).
CREATE TABLE tenant_egress (
    tenant_id   int NOT NULL REFERENCES tenants (id),
    entry       text NOT NULL CHECK (length(entry) BETWEEN 1 AND 255),
    note        text NOT NULL CHECK (length(note) <= 500),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, entry)
);

CREATE TABLE pools (
    name           text PRIMARY KEY,
    paused_at      timestamptz,
    paused_by      text,
    paused_reason  text
);

-- A slot is one pinned process. `beat` is bumped by its supervisor; `ended_at` set means dead, for ever. host, machine,
-- pid and pid_started name the supervisor; `state` is what it last said of a slot that is not dead.
CREATE TABLE slots (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    supervisor_id  uuid NOT NULL,
    pool           text NOT NULL,
    number         smallint NOT NULL,
    host           text NOT NULL,
    pid            int NOT NULL,
    cores          int[] NOT NULL,
    kinds          text[] NOT NULL,
    version        text NOT NULL,
    machine        text NOT NULL DEFAULT '',
    pid_started    bigint NOT NULL DEFAULT 0,
    state          text NOT NULL DEFAULT 'starting' CHECK (state IN ('starting', 'live', 'draining', 'stopped')),
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat           bigint NOT NULL DEFAULT 0,
    beat_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at       timestamptz,
    end_reason     text
) WITH (fillfactor = 50);
CREATE INDEX slots_live ON slots (pool) WHERE ended_at IS NULL;

CREATE SEQUENCE attempt_tokens CACHE 64;

CREATE TABLE batches (
    id            uuid PRIMARY KEY,
    tenant_id     int NOT NULL REFERENCES tenants (id),
    state         text NOT NULL CHECK (state IN ('open', 'running', 'finished')),
    run           int NOT NULL DEFAULT 1,
    tags          text[] NOT NULL DEFAULT '{}',
    callback_url  text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    CHECK ((state = 'finished') = (finished_at IS NOT NULL))
);
CREATE INDEX batches_list ON batches (tenant_id, id);
CREATE INDEX batches_unfinished ON batches (id) WHERE state = 'running';
CREATE INDEX batches_open ON batches (tenant_id) WHERE state = 'open';

-- One row a (batch, writer), so that slots do not queue up behind one counter; readers sum them in one snapshot.
-- running is counted from `held`; queued is what remains of the total. follow_* count jobs that the batch's jobs created.
CREATE TABLE batch_counts (
    batch_id          uuid NOT NULL,
    writer            bigint NOT NULL,
    total             int NOT NULL DEFAULT 0,
    scheduled         int NOT NULL DEFAULT 0,
    succeeded         int NOT NULL DEFAULT 0,
    failed            int NOT NULL DEFAULT 0,
    cancelled         int NOT NULL DEFAULT 0,
    follow_total      int NOT NULL DEFAULT 0,
    follow_scheduled  int NOT NULL DEFAULT 0,
    follow_succeeded  int NOT NULL DEFAULT 0,
    follow_failed     int NOT NULL DEFAULT 0,
    follow_cancelled  int NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, writer)
) WITH (fillfactor = 50);

-- An append of a part to an open batch, remembered so that a repeated part is answered, not added twice.
CREATE TABLE batch_parts (
    batch_id      uuid NOT NULL,
    part_key      text NOT NULL,
    request_hash  bytea NOT NULL,
    jobs          int NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (batch_id, part_key)
);

CREATE TABLE jobs (
    id                   uuid PRIMARY KEY,
    tenant_id            int NOT NULL,
    kind                 text NOT NULL,
    pool                 text NOT NULL,
    payload              jsonb NOT NULL,
    priority             smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    run_at               timestamptz NOT NULL,
    sort_at              timestamptz NOT NULL,
    created_at           timestamptz NOT NULL,
    expires_at           timestamptz,
    timeout_s            double precision CHECK (timeout_s > 0),
    max_attempts         smallint NOT NULL CHECK (max_attempts > 0),
    attempt              int NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    failures             int NOT NULL DEFAULT 0 CHECK (failures >= 0),
    losses               int NOT NULL DEFAULT 0 CHECK (losses >= 0),
    tags                 text[] NOT NULL DEFAULT '{}',
    custom_id            text,
    batch_id             uuid,
    parent_id            uuid,
    root_id              uuid,
    lineage              uuid[] NOT NULL DEFAULT '{}',
    schedule_id          uuid,
    callback_url         text,
    unique_key           text,
    unique_until         text,
    concurrency_key      text,
    has_family           boolean NOT NULL DEFAULT false,
    has_dependents       boolean NOT NULL DEFAULT false,
    pending_parents      int NOT NULL DEFAULT 0 CHECK (pending_parents >= 0),
    on_parent_failure    text NOT NULL DEFAULT 'cancel' CHECK (on_parent_failure IN ('run', 'cancel', 'fail')),
    cancel_requested_at  timestamptz,
    last_error           jsonb,
    revived_at           timestamptz,
    CHECK ((unique_key IS NULL) = (unique_until IS NULL))
);
CREATE INDEX jobs_list ON jobs (tenant_id, id);
CREATE INDEX jobs_by_batch ON jobs (batch_id, id) WHERE batch_id IS NOT NULL;
CREATE INDEX jobs_by_root ON jobs (root_id) WHERE root_id IS NOT NULL;
CREATE UNIQUE INDEX jobs_custom_id ON jobs (batch_id, custom_id) WHERE custom_id IS NOT NULL AND parent_id IS NULL;
CREATE INDEX jobs_by_key ON jobs (tenant_id, concurrency_key) WHERE concurrency_key IS NOT NULL;
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE expires_at IS NOT NULL;

-- Queued: what can be claimed, in claim order. `alone`: a suspect, which runs with nothing beside it.
-- `share` stays empty until tenants share by weight.
CREATE TABLE ready (
    job_id     uuid PRIMARY KEY,
    pool       text NOT NULL,
    sort_at    timestamptz NOT NULL,
    kind       text NOT NULL,
    tenant_id  int NOT NULL,
    alone      boolean NOT NULL DEFAULT false,
    share      bigint
);
CREATE INDEX ready_claim ON ready (pool, sort_at, job_id);
CREATE INDEX ready_alone ON ready (pool, sort_at, job_id) WHERE alone;

-- Scheduled: waits for a time (delayed, backoff), for parents (dependency) or for a permit (limit).
-- It carries all that `ready` needs, so that a promotion never reads or locks the wide row.
CREATE TABLE parked (
    job_id           uuid PRIMARY KEY,
    reason           text NOT NULL CHECK (reason IN ('delayed', 'backoff', 'dependency', 'limit')),
    run_at           timestamptz NOT NULL,
    sort_at          timestamptz NOT NULL,
    pool             text NOT NULL,
    kind             text NOT NULL,
    tenant_id        int NOT NULL,
    alone            boolean NOT NULL DEFAULT false,
    concurrency_key  text,
    batch_id         uuid,
    follow_up        boolean NOT NULL DEFAULT false,
    CHECK (reason <> 'limit' OR concurrency_key IS NOT NULL)
);
CREATE INDEX parked_due ON parked (run_at) WHERE reason IN ('delayed', 'backoff');
-- Apart from each other, so that no plan takes the first jobs of a key by sorting all of them.
CREATE INDEX parked_by_key ON parked (tenant_id, concurrency_key) WHERE concurrency_key IS NOT NULL AND reason <> 'limit';
CREATE INDEX parked_for_permit ON parked (tenant_id, concurrency_key, sort_at, job_id) WHERE reason = 'limit';

-- Running, at most a few thousand rows: found by slot without an index, which every claim would pay.
-- Held by (slot, token). Every write of an attempt checks its token here, in its own transaction.
CREATE TABLE held (
    job_id      uuid PRIMARY KEY,
    slot_id     bigint NOT NULL,
    token       bigint NOT NULL,
    attempt     int NOT NULL,
    claimed_at  timestamptz NOT NULL,
    tenant_id   int NOT NULL,
    batch_id    uuid,
    follow_up   boolean NOT NULL DEFAULT false
);

-- Terminal jobs by the day they finished; retention drops whole partitions.
CREATE TABLE history (
    tenant_id            int NOT NULL,
    id                   uuid NOT NULL,
    finished_at          timestamptz NOT NULL,
    state                text NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled')),
    kind                 text NOT NULL,
    pool                 text NOT NULL,
    payload              jsonb NOT NULL,
    priority             smallint NOT NULL,
    run_at               timestamptz NOT NULL,
    created_at           timestamptz NOT NULL,
    started_at           timestamptz,
    expires_at           timestamptz,
    timeout_s            double precision,
    max_attempts         smallint NOT NULL,
    attempt              int NOT NULL,
    failures             int NOT NULL,
    losses               int NOT NULL,
    tags                 text[] NOT NULL,
    custom_id            text,
    batch_id             uuid,
    parent_id            uuid,
    root_id              uuid,
    lineage              uuid[] NOT NULL,
    schedule_id          uuid,
    callback_url         text,
    unique_key           text,
    unique_until         text,
    concurrency_key      text,
    on_parent_failure    text NOT NULL,
    cancel_requested_at  timestamptz,
    has_family           boolean NOT NULL,
    slot_id              bigint,
    xid                  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    result               jsonb,
    error                jsonb,
    discarded_at         timestamptz,
    discarded_by         text,
    PRIMARY KEY (tenant_id, id, finished_at)
) PARTITION BY RANGE (finished_at);
-- Dead letters. A discarded one keeps its row, and leaves this index.
CREATE INDEX history_dead ON history (tenant_id, id) WHERE state = 'failed' AND discarded_at IS NULL;
CREATE INDEX history_by_batch ON history (batch_id, id) WHERE batch_id IS NOT NULL;
-- The results of a batch, read below pg_snapshot_xmin() like events: xid is who finished the job.
CREATE INDEX history_results ON history (batch_id, xid, id) WHERE batch_id IS NOT NULL AND parent_id IS NULL;
CREATE INDEX history_by_root ON history (root_id) WHERE root_id IS NOT NULL;

-- Attempts that did not end their job; the last one is told by the history row itself.
CREATE TABLE attempts (
    job_id       uuid NOT NULL,
    attempt      int NOT NULL,
    tenant_id    int NOT NULL,
    slot_id      bigint,
    started_at   timestamptz,
    finished_at  timestamptz NOT NULL,
    outcome      text NOT NULL CHECK (outcome IN ('succeeded', 'failed', 'cancelled', 'retried', 'released', 'lost')),
    error        jsonb,
    PRIMARY KEY (job_id, attempt, finished_at)
) PARTITION BY RANGE (finished_at);

-- A job that created others (jobs.has_family): settled when it is terminal and `open` is 0. Counts are of all descendants.
CREATE TABLE families (
    job_id        uuid PRIMARY KEY,
    tenant_id     int NOT NULL,
    root_id       uuid NOT NULL,
    open          int NOT NULL DEFAULT 0 CHECK (open >= 0),
    total         int NOT NULL DEFAULT 0,
    succeeded     int NOT NULL DEFAULT 0,
    failed        int NOT NULL DEFAULT 0,
    cancelled     int NOT NULL DEFAULT 0,
    ended         boolean NOT NULL DEFAULT false,
    settled_at    timestamptz
) WITH (fillfactor = 50);

CREATE TABLE dependencies (
    parent_id  uuid NOT NULL,
    job_id     uuid NOT NULL,
    PRIMARY KEY (parent_id, job_id)
);
-- Edges of a job that ended while it waited stay until its parents end: a retry waits for those that live.
CREATE INDEX dependencies_by_job ON dependencies (job_id);

CREATE TABLE unique_keys (
    tenant_id   int NOT NULL,
    key         text NOT NULL,
    job_id      uuid NOT NULL,
    until       text NOT NULL CHECK (until IN ('started', 'finished', 'time')),
    expires_at  timestamptz,
    PRIMARY KEY (tenant_id, key),
    CHECK ((until = 'time') = (expires_at IS NOT NULL))
);

-- How many jobs of a `concurrency_key` may be queued or running. Rows that nobody has set come and go with their jobs.
CREATE TABLE limits (
    tenant_id    int NOT NULL,
    key          text NOT NULL,
    concurrency  int NOT NULL DEFAULT 1 CHECK (concurrency >= 0),
    in_use       int NOT NULL DEFAULT 0 CHECK (in_use >= 0),
    is_set       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, key)
) WITH (fillfactor = 50);

-- Permits of jobs that have ended, given back without a lock while their keys had plenty and still counted in
-- `limits.in_use`: one row a commit, one element a key (docs/decisions/0024).
CREATE TABLE returned_permits (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_ids  int[] NOT NULL,
    keys        text[] NOT NULL,
    permits     int[] NOT NULL
);

CREATE VIEW uncounted_permits AS
SELECT r.tenant_id, r.key, sum(r.permits)::int AS permits
FROM returned_permits AS c CROSS JOIN LATERAL unnest(c.tenant_ids, c.keys, c.permits) AS r (tenant_id, key, permits)
GROUP BY r.tenant_id, r.key;

CREATE TABLE idempotency_keys (
    tenant_id     int NOT NULL,
    key           text NOT NULL,
    request_hash  bytea NOT NULL,
    status        smallint,
    headers       jsonb,
    body          bytea,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Terminal transitions and document changes. The id is (xid, n), read below pg_snapshot_xmin(): sequence order
-- is not commit order, and a reader that trusted it would skip the rows of a transaction that commits late.
-- `settled` on a terminal transition stands for a `job.settled` right behind it: one row for what happens at once.
CREATE TABLE events (
    xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    n          bigint GENERATED ALWAYS AS IDENTITY (CACHE 128),
    at         timestamptz NOT NULL DEFAULT now(),
    tenant_id  int NOT NULL,
    type       text NOT NULL,
    kind       text,
    job_id     uuid,
    batch_id   uuid,
    settled    boolean NOT NULL DEFAULT false,
    data       jsonb
) PARTITION BY RANGE (at);
CREATE INDEX events_order ON events (xid, n);
CREATE INDEX events_settled ON events (job_id) WHERE type = 'job.settled';
CREATE INDEX events_by_batch ON events (batch_id, xid, n) WHERE batch_id IS NOT NULL;

-- The newest event that retention has dropped: a reader whose cursor is older must start again.
CREATE TABLE events_dropped (
    is_only  boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    xid      xid8 NOT NULL
);
INSERT INTO events_dropped (xid) VALUES ('0');

-- Callbacks owed, written in the transaction that finishes the work; webhooks/ delivers them. id is the webhook-id.
CREATE TABLE outbox (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id    int NOT NULL,
    endpoint_id  uuid,
    url          text NOT NULL,
    type         text NOT NULL,
    occurred_at  timestamptz NOT NULL DEFAULT now(),
    data         jsonb NOT NULL,
    attempt      int NOT NULL DEFAULT 0,
    due_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_due ON outbox (due_at);

-- One verb for every job that matched a filter when it was accepted, done in slices (docs/decisions/0021). `as_of` tells
-- which terminal jobs there were then, `created_at` which live ones; `after_id`, where the next slice begins, is
-- committed with the slice before it.
CREATE TABLE operations (
    id           uuid PRIMARY KEY,
    tenant_id    int NOT NULL REFERENCES tenants (id),
    action       text NOT NULL CHECK (action IN ('retry', 'cancel', 'discard')),
    filter       jsonb NOT NULL,
    actor        text NOT NULL,
    state        text NOT NULL DEFAULT 'queued'
                 CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    as_of        pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    after_id     uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    due_at       timestamptz NOT NULL DEFAULT now(),
    expected     int,
    done         int NOT NULL DEFAULT 0,
    skipped      int NOT NULL DEFAULT 0,
    failed       int NOT NULL DEFAULT 0,
    started_at   timestamptz,
    finished_at  timestamptz,
    error        jsonb,
    CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL))
);
CREATE INDEX operations_list ON operations (tenant_id, id);
CREATE INDEX operations_due ON operations (due_at) WHERE finished_at IS NULL;

-- Partitions of one day each, [first, first + days). A partition that cannot be made because the default
-- one already holds such rows is left out: the rows are kept, retention deletes them one by one.
CREATE FUNCTION create_day_partitions(parent text, first date, days int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    day   date;
    made  int := 0;
BEGIN
    FOR day IN SELECT first + i FROM generate_series(0, days - 1) AS i LOOP
        IF to_regclass(format('%I', parent || to_char(day, '_YYYYMMDD'))) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    parent || to_char(day, '_YYYYMMDD'), parent,
                    day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
                made := made + 1;
            EXCEPTION WHEN check_violation OR duplicate_table THEN
                NULL;
            END;
        END IF;
    END LOOP;
    RETURN made;
END
$$;

-- Drops the partitions of days before `first_kept` and answers their names. DDL that waits for a reader would make
-- every writer wait behind it: it gives up at once, and the next tick tries again.
CREATE FUNCTION drop_day_partitions(parent text, first_kept date) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    partition  text;
    dropped    text[] := '{}';
BEGIN
    PERFORM set_config('lock_timeout', '200ms', true);
    FOR partition IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass(format('%I', parent))
        AND c.relname < parent || to_char(first_kept, '_YYYYMMDD') AND c.relname ~ '_[0-9]{8}$'
        ORDER BY c.relname
    LOOP
        BEGIN
            IF parent = 'events' THEN
                EXECUTE format(
                    'UPDATE events_dropped SET xid = greatest(xid, (SELECT max(xid) FROM %I))', partition);
            END IF;
            EXECUTE format('DROP TABLE %I', partition);
            dropped := dropped || partition;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN dropped;
END
$$;

CREATE TABLE history_default PARTITION OF history DEFAULT;
CREATE TABLE attempts_default PARTITION OF attempts DEFAULT;
CREATE TABLE events_default PARTITION OF events DEFAULT;
SELECT create_day_partitions(parent, (now() AT TIME ZONE 'UTC')::date - 1, 9)
FROM unnest(ARRAY['history', 'attempts', 'events']) AS parent;

-- Live jobs with their state, whichever narrow table tells it. One statement over it reads one snapshot, so a job
-- that moves is neither missed nor seen twice. OFFSET 0 has each job looked up: statistics of a minute when the queue was
-- empty would have the planner read all that is queued for the states of a page.
CREATE VIEW live_jobs AS
SELECT
    j.id, j.tenant_id, j.kind, j.pool,
    CASE WHEN h.job_id IS NOT NULL THEN 'running' WHEN r.job_id IS NOT NULL THEN 'queued' ELSE 'scheduled' END AS state,
    p.reason AS state_reason,
    j.payload, j.priority, j.tags, j.custom_id, j.batch_id, j.parent_id, j.root_id, j.schedule_id,
    coalesce(h.attempt, j.attempt) AS attempt, j.max_attempts,
    coalesce(p.run_at, j.run_at) AS run_at, j.created_at, h.claimed_at AS started_at, NULL::timestamptz AS finished_at,
    j.expires_at, j.cancel_requested_at, j.has_family, NULL::jsonb AS result, j.last_error AS error,
    h.slot_id, j.callback_url, j.concurrency_key, NULL::timestamptz AS discarded_at
FROM jobs AS j
LEFT JOIN LATERAL (SELECT * FROM held WHERE job_id = j.id OFFSET 0) AS h ON true
LEFT JOIN LATERAL (SELECT job_id FROM ready WHERE job_id = j.id OFFSET 0) AS r ON true
LEFT JOIN LATERAL (SELECT * FROM parked WHERE job_id = j.id OFFSET 0) AS p ON true;

-- The same columns for terminal jobs.
CREATE VIEW finished_jobs AS
SELECT
    id, tenant_id, kind, pool, state, NULL::text AS state_reason, payload, priority, tags, custom_id, batch_id,
    parent_id, root_id, schedule_id, attempt, max_attempts, run_at, created_at, started_at, finished_at, expires_at,
    cancel_requested_at, has_family, result, error, slot_id, callback_url, concurrency_key, discarded_at
FROM history;

-- A family's descendants by state: terminal ones are counted, live ones are looked at.
CREATE VIEW family_counts AS
SELECT
    f.job_id, f.settled_at, f.total, f.succeeded, f.failed, f.cancelled, l.scheduled, l.queued, l.running
FROM families AS f
CROSS JOIN LATERAL (
    SELECT count(p.job_id) AS scheduled, count(r.job_id) AS queued, count(h.job_id) AS running
    FROM jobs AS j
    LEFT JOIN LATERAL (SELECT job_id FROM held WHERE job_id = j.id OFFSET 0) AS h ON true
    LEFT JOIN LATERAL (SELECT job_id FROM ready WHERE job_id = j.id OFFSET 0) AS r ON true
    LEFT JOIN LATERAL (SELECT job_id FROM parked WHERE job_id = j.id OFFSET 0) AS p ON true
    WHERE j.root_id = f.root_id AND j.lineage @> ARRAY[f.job_id]
) AS l;

-- What the writers of a batch have counted, the caller's own jobs and those that they created.
CREATE VIEW summed_batches AS
SELECT b.id, b.tenant_id, b.state, b.run, b.tags, b.callback_url, b.created_at, b.finished_at, c.*
FROM batches AS b
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(total), 0) AS total, coalesce(sum(scheduled), 0) AS scheduled,
        coalesce(sum(succeeded), 0) AS succeeded, coalesce(sum(failed), 0) AS failed,
        coalesce(sum(cancelled), 0) AS cancelled, coalesce(sum(follow_total), 0) AS follow_total,
        coalesce(sum(follow_scheduled), 0) AS follow_scheduled, coalesce(sum(follow_succeeded), 0) AS follow_succeeded,
        coalesce(sum(follow_failed), 0) AS follow_failed, coalesce(sum(follow_cancelled), 0) AS follow_cancelled
    FROM batch_counts WHERE batch_id = b.id
) AS c;

-- A batch's jobs by state; queued is what remains of the total.
CREATE VIEW counted_batches AS
SELECT
    s.*, h.running, h.follow_running, s.total - s.scheduled - h.running - s.succeeded - s.failed - s.cancelled AS queued,
    s.follow_total - s.follow_scheduled - h.follow_running - s.follow_succeeded - s.follow_failed - s.follow_cancelled
        AS follow_queued
FROM summed_batches AS s
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE NOT follow_up) AS running, count(*) FILTER (WHERE follow_up) AS follow_running
    FROM held WHERE batch_id = s.id
) AS h;

-- Hot and small: vacuum by churn, not by size.
ALTER TABLE ready SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE held SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE parked SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000, autovacuum_vacuum_cost_delay = 0);
