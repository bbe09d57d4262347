"""Plans must not depend on statistics: on large tables no hot statement may read one as a whole,
whether they were never analysed, analysed while they were empty or had just been emptied, or just
now; and whether its plan is made for its arguments or for any.
"""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import md5
from uuid import UUID

import pytest

from jobs.model import SlotId
from runtime.postgres import Connection
from runtime.sql import load_queries
from tests.jobs.desk import Desk

pytestmark = pytest.mark.anyio

QUERIES = {**load_queries("jobs"), **load_queries("jobs", "slots")}
DAILY = ("history", "attempts", "events")
BIG = (
    "jobs",
    "ready",
    "held",
    "parked",
    *DAILY,
    "unique_keys",
    "dependencies",
    "batch_counts",
)

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
    INSERT INTO events (tenant_id, type, job_id, kind, batch_id)
    SELECT 1, 'job.succeeded', id, 'probe', md5((n % 200)::text)::uuid FROM new_job
), tried AS (
    INSERT INTO attempts (job_id, attempt, tenant_id, finished_at, outcome)
    SELECT id, 1, 1, now(), 'retried' FROM new_job
), counted AS (
    INSERT INTO batch_counts (batch_id, writer, total, succeeded)
    SELECT md5((n % 200)::text)::uuid, n, 1, 1 FROM new_job
)
INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at,
    created_at, max_attempts, attempt, failures, losses, tags, lineage, on_parent_failure,
    has_family, batch_id)
SELECT 1, gen_random_uuid(), now(), CASE n % 100 WHEN 0 THEN 'failed' ELSE 'succeeded' END, 'probe',
    'probe', '{}', 4, now(), now(), 3, 1, 0, 0, '{}', '{}', 'run', false, md5((n % 200)::text)::uuid
FROM new_job
"""

# What runs is a few thousand jobs at most: an index by batch or slot would cost every claim.
SMALL_IN_FACT = {
    (name, "held") for name in ("get_batches", "beat", "ended_holding", "held_by_slot")
}
ANALYSE = f"ANALYZE {', '.join(BIG)}"


@pytest.fixture(params=["unanalysed", "analysed empty", "analysed when emptied"])
async def big(desk: Desk, request: pytest.FixtureRequest) -> AsyncIterator[Connection]:
    """A connection in a transaction with many rows a table, rolled back at the end."""
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SET LOCAL statement_timeout = '110s'")
        if request.param == "analysed when emptied":
            # As autovacuum may find them: many pages and no row.
            await connection.execute(FILL, 20_000, timeout=110)
            for table in BIG:
                await connection.execute(f"DELETE FROM {table}")  # noqa: S608 # a table of ours
        if request.param != "unanalysed":
            await connection.execute(ANALYSE)
        await connection.execute(FILL, 60_000, timeout=110)
        yield connection
        await transaction.rollback()


def _arguments(slot: SlotId, ids: list[UUID]) -> dict[str, tuple[object, ...]]:
    tokens = list(range(1, len(ids) + 1))
    waited = [0.0] * len(ids)
    batch = UUID(bytes=md5(b"7", usedforsecurity=False).digest())
    return {
        "claim": (slot, "probe", ["probe"], 100, True, None),
        "beat": ([slot], ["live"]),
        "to_sweep": (),
        "ended_holding": (1.0,),
        "held_by_slot": (slot, UUID(int=0), 200),
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
        "job_states": (1, ids),
        "known_jobs": (1, ids),
        "attempts": (1, ids[0]),
        "get_batches": (1, [batch]),
        "batch_results": (1, batch, "0", ids[0], 100),
        "lock_expired": (100, None),
        "request_cancel": (ids, None),
        "lock_for_cancel": (1, ids),
        "lock_for_retry": (1, ids),
        "lock_live_parents": (ids,),
        "revive": (None, 1, ids, 60.0),
        "waiting_jobs": (ids,),
        "unannounced": (1.0, 64, None),
        "lock_due_batches": ([batch], 100),
        "batch_events": (1, "0", 0, 100, batch),
        "tenant_events": (1, "0", 0, 100),
        "job_events": (1, "0", 0, 100, ids[0]),
    }


def _reads_whole(name: str, line: str, below: str) -> bool:
    """Whether the scan of this line begins at the table's first row, or at its index's."""
    scan = re.search(r"(Seq|Index|Index Only) Scan (?:using \S+ )?on (\S+)", line)
    if not scan or below.startswith("Index Cond") or (name, scan[2]) in SMALL_IN_FACT:
        return False
    table = scan[2]
    # Of the days only today has rows.
    today = f"_{datetime.now(UTC):%Y%m%d}"
    return table in BIG or (table.startswith(DAILY) and table.endswith(today))


async def test_no_plan_depends_on_statistics(desk: Desk, big: Connection) -> None:
    slot = await desk.slot()
    ids = [row["id"] for row in await big.fetch("SELECT id FROM jobs LIMIT 100")]
    found: list[str] = []
    for mode in ("force_custom_plan", "force_generic_plan"):
        await big.execute(f"SET LOCAL plan_cache_mode = {mode}")
        found += await _read_as_a_whole(big, mode, _arguments(slot, ids))
        # It must stop at its limit, not sort the backlog: what it really read is told.
        claimed = await _scan(
            big, "ready_claim", "claim", slot, "probe", ["probe"], 100, False, None
        )
        assert "rows=100" in claimed
    assert not found
    await big.execute(ANALYSE)
    an_hour_on = datetime.now(UTC) + timedelta(hours=1)
    assert "rows=100" in await _scan(big, "parked_due", "promote_due", 100, an_hour_on)
    assert not await _read_as_a_whole(big, "analysed now", _arguments(slot, ids))


async def _read_as_a_whole(
    connection: Connection, mode: str, statements: dict[str, tuple[object, ...]]
) -> list[str]:
    """The lines of all plans that read a big table from its beginning to its end."""
    found = []
    for name, arguments in statements.items():
        rows = await connection.fetch(f"EXPLAIN {QUERIES[name]}", *arguments)
        plan = [line.strip() for (line,) in rows]
        found += [
            f"{name}, {mode}: {line}"
            for above, line, below in zip(["", *plan], plan, [*plan[1:], ""], strict=False)
            if "Limit " not in above and _reads_whole(name, line, below)
        ]
    return found


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
    assert len(scans) == 1, "\n".join(line for (line,) in plan)
    return str(scans[0])


@pytest.mark.parametrize("keys", [500, 20_000])
async def test_permits_are_given_back_in_the_order_of_their_keys(desk: Desk, keys: int) -> None:
    """In the order of the table, two writers with the same keys would wait for each other."""
    given = [1] * 250, [str(n) for n in range(250)], [1] * 250
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        fill = "INSERT INTO limits (tenant_id, key) SELECT 1, n::text FROM generate_series(1, $1) n"
        await connection.execute(fill, keys)
        emptied = "DELETE FROM limits WHERE key <> '7'; ANALYZE limits"
        for change in ("SELECT 1", "ANALYZE limits", emptied):
            await connection.execute(change)
            for mode in ("force_custom_plan", "force_generic_plan"):
                await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
                rows = await connection.fetch(f"EXPLAIN {QUERIES['release_permits']}", *given)
                plan = [line for (line,) in rows]
                assert any("Index Scan using limits_pkey" in line for line in plan), plan
                assert not any("Hash" in line for line in plan), plan
        await transaction.rollback()
