-- What the chaos kinds do for good: a row a job, written under the fence of its attempt. No constraint keeps a second
-- row or a late one out, since finding those is the point. Made in chaos' own database only, never by a migration.

CREATE TABLE chaos_effects (
    job_id   uuid NOT NULL,
    token    bigint NOT NULL,
    attempt  int NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX chaos_effects_by_job ON chaos_effects (job_id);
