"""A slice of a bulk operation reads a bounded number of rows, whatever its filter and whatever the
planner believes, by a plan for its arguments or for any.
"""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from jobs.matching import (
    FIRST_ID,
    OPERATIONS,
    SLICE_JOBS,
    SLICE_ROWS,
    OperationAction,
    OperationFilter,
    Wanted,
    arguments,
)
from jobs.model import DEFAULT_TENANT
from jobs.states import JobState
from runtime.postgres import Connection
from tests.jobs.desk import Desk
from tests.support.planner import PLAN_MODES, Belief, filled

pytestmark = pytest.mark.anyio

ROWS = 20_000
TABLES = ("jobs", "ready", "history")
BATCH = UUID(int=5)
MIDDLE = UUID(int=1 << 127)

FILL = """
WITH new_job AS (
    SELECT gen_random_uuid() AS id, n FROM generate_series(1, $1::int) AS n
), live AS (
    INSERT INTO jobs (id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at,
        max_attempts, batch_id)
    SELECT id, 1, 'probe', 'probe', '{}', 4, now(), now(), now() - interval '1 hour', 3, $2
    FROM new_job
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT id, 'probe', now(), 'probe', 1 FROM new_job
)
INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at,
    created_at, max_attempts, attempt, failures, losses, tags, lineage, on_parent_failure,
    has_family, batch_id, xid)
SELECT 1, gen_random_uuid(), now(), CASE WHEN n % 2 = 0 THEN 'failed' ELSE 'succeeded' END,
    'probe', 'probe', '{}', 4, now(), now() - interval '1 hour', 3, 1, 0, 0, '{}',
    '{}', 'run', false, $2, '3'
FROM new_job
"""


async def fill(connection: Connection) -> None:
    await connection.execute(FILL, ROWS, BATCH, timeout=110)


@pytest.fixture(params=[Belief.NOTHING, Belief.ONE_ROW, Belief.ONE_ROW_VACUUMED])
async def big(desk: Desk, request: pytest.FixtureRequest) -> AsyncIterator[Connection]:
    """A connection in a transaction with 20,000 live and ended jobs, rolled back at the end."""
    async with (
        desk.pool.acquire() as connection,
        filled(connection, request.param, TABLES, fill),
    ):
        yield connection


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows_read(plan: dict[str, Any]) -> int:
    """Rows that were touched in tables and indexes, those that a condition removed included."""
    total = 0
    for node in _nodes(plan):
        if "Relation Name" in node or "Index Name" in node:
            removed = node.get("Rows Removed by Filter", 0) + node.get(
                "Rows Removed by Index Recheck", 0
            )
            total += (node["Actual Rows"] + removed) * node["Actual Loops"]
    return int(total)


_NONE = OperationFilter(kind="none")


_CASES = (
    (OperationAction.RETRY, OperationFilter(kind="probe")),
    (OperationAction.RETRY, _NONE),
    (OperationAction.RETRY, replace(_NONE, state=JobState.SUCCEEDED)),
    (OperationAction.DISCARD, replace(_NONE, batch_id=BATCH)),
    (OperationAction.CANCEL, OperationFilter(kind="probe")),
    (OperationAction.CANCEL, OperationFilter(state=JobState.RUNNING)),
    (OperationAction.CANCEL, replace(_NONE, batch_id=BATCH)),
)


async def test_no_slice_reads_more_than_its_share(big: Connection) -> None:
    ids = [row["id"] for row in await big.fetch("SELECT id FROM history ORDER BY id LIMIT 1000")]
    named = [(action, OperationFilter(ids=tuple(ids))) for action in OperationAction]
    now = await big.fetchrow("SELECT now() AS alive_at, pg_current_snapshot()::text AS as_of")
    assert now is not None
    await big.execute(OPERATIONS["weigh_sorting"], "off")
    read: dict[str, int] = {}
    for mode in PLAN_MODES:
        await big.execute(f"SET LOCAL plan_cache_mode = {mode}")
        for action, chosen in (*_CASES, *named):
            wanted = Wanted(DEFAULT_TENANT, action, chosen, now["alive_at"], now["as_of"])
            for after_id in (FIRST_ID, MIDDLE):
                name, given = arguments(wanted, after_id, SLICE_JOBS)
                query = f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {OPERATIONS[name]}"
                plan = json.loads(await big.fetchval(query, *given))[0]["Plan"]
                read[f"{mode} {action} {chosen} {after_id}"] = _rows_read(plan)
    # The rows themselves, and up to two look-ups of a state for each of them.
    assert {case: rows for case, rows in read.items() if rows > 3 * SLICE_ROWS} == {}
    assert max(read.values()) >= SLICE_ROWS


async def test_the_queries_spell_the_share_out() -> None:
    for name in ("live_slice", "finished_slice"):
        assert OPERATIONS[name].count(f"LIMIT {SLICE_ROWS}") >= 3
        assert f"< {SLICE_ROWS} AS is_last" in OPERATIONS[name]
