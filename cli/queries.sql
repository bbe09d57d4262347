-- name: schema_version
-- A backup says which migrations its tables have seen; no row means that these are not our tables.
SELECT max(version) AS version, pg_database_size(current_database()) AS size_bytes FROM schema_migrations;

-- name: clear_for_restore
-- Drops what a fresh stack has made, in the transaction that restores. What a stack writes by merely starting
-- may go; a row anywhere else is somebody's, whoever's table it is. Locked first, so that none is added meanwhile.
DO $$
DECLARE
    item    record;
    filled  boolean;
BEGIN
    PERFORM set_config('lock_timeout', '10s', true);
    FOR item IN
        SELECT c.oid::regclass AS name, c.relname, c.relkind FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
        ORDER BY c.relname
    LOOP
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', item.name);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', item.name) INTO filled;
        IF filled AND item.relname NOT IN (
            'schema_migrations', 'tenants', 'pools', 'slots', 'search_servers', 'internal_secrets',
            'api_keys', 'callback_secrets', 'events_dropped', 'webhook_cursor'
        ) THEN
            RAISE EXCEPTION 'the database is not empty (% has rows), and a restore replaces all of it: %',
                item.relname, 'start `xnai up` with a new XNAI_DATA_DIR, or set XNAI_DATABASE_URL to a new database';
        END IF;
        EXECUTE format('DROP TABLE %s CASCADE', item.name);
    END LOOP;
    FOR item IN
        SELECT 'ROUTINE' AS sort, p.oid::regprocedure::text AS name FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
        UNION ALL
        SELECT 'SEQUENCE', c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S'
        AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('DROP %s %s', item.sort, item.name);
    END LOOP;
END
$$;

-- name: use_our_schema
-- A dump leaves the session with an empty search path.
SET search_path = public;

-- name: end_restored_slots
-- No slot of the backup lives: the sweepers take back what they held. One that lives now may bear the number of one
-- of them: it finds itself ended, and its supervisor starts it anew.
UPDATE slots SET ended_at = clock_timestamp(), end_reason = 'restored from a backup' WHERE ended_at IS NULL;

-- name: rebase_positions
-- Positions of events and results are transaction ids, and count anew in another cluster: ids from its future would hide
-- the rows, and put all new events before the old ones. They become ids from before any transaction: before, at
-- and after what the webhooks have read, so that the rest is still delivered, and a job's events share its own.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM events WHERE xid >= pg_current_xact_id())
    AND NOT EXISTS (SELECT FROM history WHERE xid >= pg_current_xact_id())
    AND NOT EXISTS (SELECT FROM events_dropped WHERE xid >= pg_current_xact_id())
    AND NOT EXISTS (SELECT FROM webhook_cursor WHERE xid >= pg_current_xact_id()) THEN
        RETURN;
    END IF;
    UPDATE events AS e SET xid = CASE WHEN e.xid < c.xid THEN '3' WHEN e.xid = c.xid THEN '4' ELSE '5' END::xid8
    FROM webhook_cursor AS c;
    UPDATE history AS h SET xid = CASE WHEN h.xid < c.xid THEN '3' WHEN h.xid = c.xid THEN '4' ELSE '5' END::xid8
    FROM webhook_cursor AS c;
    UPDATE events_dropped SET xid = '3' WHERE xid > '3'::xid8;
    UPDATE webhook_cursor SET xid = '4';
    UPDATE operations SET as_of = pg_current_snapshot() WHERE finished_at IS NULL;
END
$$;

-- name: done_by_slot
-- What each slot has recorded of a trial's batches: read from the counters, so that looking costs the trial nothing.
SELECT writer, sum(succeeded + failed + cancelled)::int8 AS done
FROM batch_counts WHERE succeeded + failed + cancelled > 0 GROUP BY writer ORDER BY writer;

-- name: drained_ledger
-- Everything that recording a job writes, counted over the whole database of a trial.
SELECT h.*, e.*, l.live, c.counted
FROM (
    SELECT count(*) AS jobs, count(DISTINCT id) AS distinct_jobs, count(*) FILTER (WHERE state = 'succeeded') AS succeeded
    FROM history
) AS h
CROSS JOIN (
    SELECT count(*) AS events, count(DISTINCT job_id) AS distinct_events
    FROM events WHERE type = 'job.succeeded' AND settled
) AS e
CROSS JOIN (SELECT coalesce(sum(succeeded), 0)::int8 AS counted FROM batch_counts) AS c
CROSS JOIN (
    SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM ready) + (SELECT count(*) FROM held)
        + (SELECT count(*) FROM parked) AS live
) AS l;
