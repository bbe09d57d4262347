-- Schedules, and the fires that became jobs. A fire is unique by (schedule_id, fire_at): however many tickers
-- run, and whatever the clock does, one time on a timetable leads to at most one job (docs/decisions/0008).

CREATE TABLE schedules (
    id              uuid PRIMARY KEY,
    tenant_id       int NOT NULL REFERENCES tenants (id),
    name            text NOT NULL,
    job             jsonb NOT NULL,
    cron            text,
    every_s         double precision CHECK (every_s > 0),
    adaptive_min_s  double precision CHECK (adaptive_min_s > 0),
    adaptive_max_s  double precision,
    timezone        text NOT NULL,
    jitter_s        double precision NOT NULL CHECK (jitter_s >= 0),
    misfire         text NOT NULL CHECK (misfire IN ('skip', 'once', 'all')),
    overlap         text NOT NULL CHECK (overlap IN ('skip', 'queue')),
    version         int NOT NULL DEFAULT 1,
    -- Where a period is counted from: the last change of the timing, or an adaptive schedule's last fire.
    anchor_at       timestamptz NOT NULL,
    interval_s      double precision CHECK (interval_s > 0),
    unchanged_runs  int NOT NULL DEFAULT 0 CHECK (unchanged_runs >= 0),
    next_at         timestamptz,
    due_at          timestamptz,
    last_fire_at    timestamptz,
    planned_at      timestamptz NOT NULL,
    paused_at       timestamptz,
    paused_by       text,
    paused_reason   text,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    UNIQUE (tenant_id, name),
    CHECK (num_nonnulls(cron, every_s, adaptive_min_s) = 1),
    CHECK (num_nulls(adaptive_min_s, adaptive_max_s, interval_s) IN (0, 3)),
    CHECK (adaptive_max_s >= adaptive_min_s),
    CHECK (num_nulls(paused_at, paused_by, paused_reason) IN (0, 3)),
    CHECK (num_nulls(next_at, due_at) IN (0, 2) AND due_at >= next_at),
    CHECK (paused_at IS NULL OR due_at IS NULL)
) WITH (fillfactor = 70);
CREATE INDEX schedules_list ON schedules (tenant_id, id);
CREATE INDEX schedules_due ON schedules (due_at) WHERE due_at IS NOT NULL;
-- Finds what a clock that ran ahead and was set back has put off into the future.
CREATE INDEX schedules_planned ON schedules (planned_at) WHERE due_at IS NOT NULL;

CREATE TABLE schedule_fires (
    schedule_id  uuid NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
    fire_at      timestamptz NOT NULL,
    tenant_id    int NOT NULL,
    decided_at   timestamptz NOT NULL,
    cause        text NOT NULL CHECK (cause IN ('time', 'manual')),
    actor        text,
    outcome      text NOT NULL CHECK (outcome IN ('enqueued', 'skipped', 'missed', 'refused')),
    detail       text,
    job_id       uuid,
    job_state    text,
    settled_at   timestamptz,
    -- When to ask the ledger again how the job stands; set only while it is not settled.
    look_at      timestamptz,
    PRIMARY KEY (schedule_id, fire_at),
    CHECK ((cause = 'manual') = (actor IS NOT NULL)),
    CHECK (job_state IS NULL OR settled_at IS NOT NULL),
    CHECK (look_at IS NULL OR (job_id IS NOT NULL AND settled_at IS NULL))
);
CREATE INDEX schedule_fires_open ON schedule_fires (look_at) WHERE look_at IS NOT NULL;
CREATE INDEX schedule_fires_open_of ON schedule_fires (schedule_id) WHERE look_at IS NOT NULL;
CREATE INDEX schedule_fires_age ON schedule_fires (decided_at);
