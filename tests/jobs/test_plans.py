"""Plans must not depend on statistics: on fresh, large, never analysed tables no hot statement
may read one as a whole, whether its plan is made for its arguments or for any.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from jobs.model import SlotId
from runtime.postgres import Connection
from runtime.sql import load_queries
from tests.jobs.desk import Desk

pytestmark = pytest.mark.anyio

QUERIES = load_queries("jobs")
ROWS = 200_000
BIG = ("jobs", "ready", "held", "parked", "history", "events", "unique_keys", "dependencies")

FILL = """
WITH new_job AS (
    SELECT gen_random_uuid() AS id, n FROM generate_series(1, $1::int) AS n
), kept AS (
    INSERT INTO jobs (id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at,
        max_attempts)
    SELECT id, 1, 'probe', 'probe', '{}', 4, now(), now(), now(), 3 FROM new_job
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT id, 'probe', now() + n * interval '1 ms', 'probe', 1 FROM new_job
), held_too AS (
    -- Not what a ledger holds, but what its tables may look like to the planner.
    INSERT INTO held (job_id, slot_id, token, attempt, claimed_at, tenant_id)
    SELECT id, n % 50, n, 1, now(), 1 FROM new_job
), waiting AS (
    INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id)
    SELECT id, 'delayed', now() + n * interval '1 ms', now(), 'probe', 'probe', 1 FROM new_job
), keys AS (
    INSERT INTO unique_keys (tenant_id, key, job_id, until)
    SELECT 1, n::text, id, 'finished' FROM new_job
), edges AS (
    INSERT INTO dependencies (parent_id, job_id) SELECT id, gen_random_uuid() FROM new_job
), told AS (
    INSERT INTO events (tenant_id, type, job_id, kind)
    SELECT 1, 'job.succeeded', id, 'probe' FROM new_job
)
INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at,
    created_at, max_attempts, attempt, failures, losses, tags, lineage, on_parent_failure,
    has_family)
SELECT 1, gen_random_uuid(), now(), 'succeeded', 'probe', 'probe', '{}', 4, now(), now(), 3, 1, 0,
    0, '{}', '{}', 'run', false
FROM new_job
"""


@pytest.fixture
async def big(desk: Desk) -> AsyncIterator[Connection]:
    """A connection in a transaction with 200,000 rows a table, rolled back at the end."""
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SET LOCAL statement_timeout = '110s'")
        await connection.execute(FILL, ROWS)
        yield connection
        await transaction.rollback()


def _arguments(slot: SlotId, ids: list[UUID]) -> dict[str, tuple[object, ...]]:
    tokens = list(range(1, len(ids) + 1))
    waited = [0.0] * len(ids)
    return {
        "claim": (slot, "probe", ["probe"], 100, True),
        "assert_held": (ids[0], 1),
        "lock_held_jobs": (ids, tokens),
        "finish_held": (slot, None, ids, tokens, [], waited, [], []),
        "back_off": (slot, None, ids, tokens, waited, [{}] * len(ids), waited),
        "give_back": (slot, None, ids, tokens, waited, "released", [{}] * len(ids)),
        "finish_waiting": (None, ids, ["cancelled"] * len(ids), ["{}"] * len(ids)),
        "promote_due": (100, None),
        "unpark": (ids, None),
        "lock_dependents": (ids,),
        "drop_dependencies": (ids,),
        "release_unique_keys": ([1] * 100, [str(n) for n in range(100)], ids),
        "tell_settled": (ids, None, [1]),
        "owe_callbacks": (ids, None, [1]),
        "get_jobs": (1, ids),
        "list_all": (1, UUID(int=(1 << 128) - 1), None, None, 100),
        "tenant_events": (1, "0", 0, 100),
        "job_events": (1, "0", 0, 100, ids[0]),
    }


def _reads_whole(line: str) -> bool:
    _, scan, table = line.partition("Seq Scan on ")
    return bool(scan) and table.startswith(BIG)


async def test_no_plan_depends_on_statistics(desk: Desk, big: Connection) -> None:
    slot = await desk.slot()
    ids = [row["id"] for row in await big.fetch("SELECT id FROM jobs LIMIT 100")]
    an_hour_on = datetime.now(UTC) + timedelta(hours=1)
    found: list[str] = []
    for mode in ("force_custom_plan", "force_generic_plan"):
        await big.execute(f"SET LOCAL plan_cache_mode = {mode}")
        for name, arguments in _arguments(slot, ids).items():
            plan = await big.fetch(f"EXPLAIN {QUERIES[name]}", *arguments)
            found += [f"{name}, {mode}: {line.strip()}" for (line,) in plan if _reads_whole(line)]
        # These two must stop at their limit, not sort the backlog: what they really read is told.
        claimed = await _scan(big, "ready_claim", "claim", slot, "probe", ["probe"], 100, False)
        promoted = await _scan(big, "parked_due", "promote_due", 100, an_hour_on)
        assert "rows=100" in claimed
        assert "rows=100" in promoted
    assert not found


async def _scan(connection: Connection, index: str, name: str, *arguments: object) -> str:
    """The line of the plan that follows the index, with what it really read."""
    query = f"EXPLAIN (ANALYZE, TIMING off) {QUERIES[name]}"
    savepoint = connection.transaction()
    await savepoint.start()
    # Neither are the other tables in order for these to run, nor is what they do wanted.
    await connection.execute("DELETE FROM held" if name == "claim" else "DELETE FROM ready")
    plan = await connection.fetch(query, *arguments)
    await savepoint.rollback()
    scans = [line for (line,) in plan if f"Index Scan using {index}" in line]
    assert len(scans) == 1, plan
    return str(scans[0])
