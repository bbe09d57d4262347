"""A page of a list reads a bounded number of rows, whatever its filter and whatever the planner
believes, by a plan for its arguments or for any.
"""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from jobs.cursors import LAST_ID
from jobs.lookup import LISTS, PAGE_ROWS, JobFilter, list_jobs, list_query
from jobs.model import DEFAULT_TENANT, TenantId
from jobs.states import JobState
from runtime.postgres import Connection
from tests.jobs.desk import Desk
from tests.support.planner import PLAN_MODES, Belief, filled

pytestmark = pytest.mark.anyio

ROWS = 25_000
TABLES = ("jobs", "ready", "parked", "held", "history")
RARE = 3
LIMIT = 100
BATCH = UUID(int=5)
STRANGER = TenantId(2)
# Ids rise with n. Of each half the oldest three are rare, and the newest two another tenant's.
FILL = """
WITH new_job AS (
    SELECT n, lpad(to_hex(n), 32, '0')::uuid AS live_id,
        lpad(to_hex($1::int + n), 32, '0')::uuid AS ended_id,
        CASE WHEN n <= $3 THEN 'rare' ELSE 'probe' END AS kind,
        CASE WHEN n <= $3 THEN ARRAY['rare'] ELSE '{}' END AS tags,
        CASE WHEN n > $1 - 2 THEN 2 ELSE 1 END AS tenant_id,
        CASE WHEN n <= $1 - 2 THEN $2::uuid END AS batch_id
    FROM generate_series(1, $1::int) AS n
), live AS (
    INSERT INTO jobs (id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at,
        max_attempts, batch_id, tags)
    SELECT live_id, tenant_id, kind, 'probe', '{}', 4, now(), now(), now(), 3, batch_id, tags
    FROM new_job
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT live_id, 'probe', now(), kind, tenant_id FROM new_job
), waiting AS (
    -- Not what a ledger holds, but it spares the test two more sets of jobs.
    INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id)
    SELECT live_id, 'delayed', now(), now(), 'probe', kind, tenant_id FROM new_job
), running AS (
    INSERT INTO held (job_id, slot_id, token, attempt, claimed_at, tenant_id)
    SELECT live_id, 1, n, 1, now(), tenant_id FROM new_job
)
INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at,
    created_at, max_attempts, attempt, failures, losses, tags, lineage, on_parent_failure,
    has_family, batch_id, error)
SELECT tenant_id, ended_id, now() - n % 2 * interval '1 day',
    CASE WHEN n <= $3 THEN 'cancelled' WHEN n % 2 = 0 THEN 'failed' ELSE 'succeeded' END,
    kind, 'probe', '{}', 4, now(), now(), 3, 1, 0, 0, tags, '{}', 'run', false, batch_id,
    jsonb_build_object('type', CASE WHEN n <= 4 THEN 'odd' ELSE 'broken' END)
FROM new_job
"""

# What each filter finds.
RARE_JOBS: dict[JobFilter, int] = {
    JobFilter(kind="rare"): 2 * RARE,
    JobFilter(tag="rare"): 2 * RARE,
    JobFilter(kind="none"): 0,
    JobFilter(state=JobState.CANCELLED): RARE,
    JobFilter(state=JobState.SUCCEEDED, tag="rare"): 0,
    JobFilter(state=JobState.FAILED, error_type="odd"): 1,
    JobFilter(state=JobState.FAILED, discarded=True): 0,
    JobFilter(state=JobState.QUEUED, kind="rare"): RARE,
    JobFilter(state=JobState.QUEUED, tag="rare"): RARE,
    JobFilter(state=JobState.SCHEDULED, tag="rare"): RARE,
    JobFilter(state=JobState.RUNNING, kind="rare"): RARE,
    JobFilter(batch_id=BATCH, tag="rare"): 2 * RARE,
    JobFilter(batch_id=BATCH, state=JobState.CANCELLED): RARE,
    JobFilter(batch_id=BATCH, state=JobState.RUNNING, kind="rare"): RARE,
}
COMMON = (
    JobFilter(),
    JobFilter(kind="probe"),
    JobFilter(batch_id=BATCH),
    *(JobFilter(state=state) for state in JobState if state is not JobState.CANCELLED),
)


async def fill(connection: Connection) -> None:
    await connection.execute(FILL, ROWS, BATCH, RARE, timeout=110)


@pytest.fixture
def belief() -> Belief:
    return Belief.NOTHING


@pytest.fixture
async def big(desk: Desk, belief: Belief) -> AsyncIterator[Connection]:
    """A connection in a transaction with 25,000 live and as many ended jobs, rolled back at the
    end.
    """
    async with (
        desk.pool.acquire() as connection,
        filled(connection, belief, TABLES, fill),
    ):
        yield connection


def _rows_read(node: dict[str, Any]) -> int:
    """Rows that were touched in tables and indexes, those that a condition removed included."""
    total = sum(_rows_read(child) for child in node.get("Plans", ()))
    if "Relation Name" in node or "Index Name" in node:
        removed = node.get("Rows Removed by Filter", 0)
        removed += node.get("Rows Removed by Index Recheck", 0)
        total += int((node["Actual Rows"] + removed) * node["Actual Loops"])
    return total


async def _read(connection: Connection, job_filter: JobFilter) -> int:
    name, given = list_query(DEFAULT_TENANT, job_filter, LAST_ID, LIMIT + 1)
    query = f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {LISTS[name]}"
    plan: dict[str, Any] = json.loads(await connection.fetchval(query, *given))[0]["Plan"]
    return _rows_read(plan)


@pytest.mark.parametrize("belief", [Belief.NOTHING, Belief.ONE_ROW, Belief.ONE_ROW_VACUUMED])
async def test_no_page_reads_more_than_its_share(big: Connection) -> None:
    await big.execute(LISTS["dear_sorting"])
    read: dict[tuple[str, str, JobFilter], int] = {}
    for analyse in ("SELECT 1", "ANALYZE jobs, ready, parked, held, history"):
        await big.execute(analyse)
        for mode in PLAN_MODES:
            await big.execute(f"SET LOCAL plan_cache_mode = {mode}")
            for job_filter in (*RARE_JOBS, *COMMON):
                read[analyse, mode, job_filter] = await _read(big, job_filter)
    # Of both halves, or the rows and one or two looks at wider ones for each: never a whole half.
    assert {case: rows for case, rows in read.items() if rows > 3 * PAGE_ROWS + 10 * LIMIT} == {}
    # A page that fills at once stops there: each job is found, and read from five tables at most.
    full = {case: rows for case, rows in read.items() if case[2] in COMMON}
    assert {case: rows for case, rows in full.items() if rows > 10 * LIMIT} == {}
    assert max(read.values()) >= PAGE_ROWS


@pytest.mark.parametrize(("job_filter", "expected"), RARE_JOBS.items(), ids=str)
async def test_short_pages_lead_to_every_job_that_matches(
    big: Connection, job_filter: JobFilter, expected: int
) -> None:
    page = await list_jobs(big, DEFAULT_TENANT, job_filter, limit=2)
    assert not page.jobs
    found, pages = list(page.jobs), 1
    while page.next_cursor is not None:
        page = await list_jobs(big, DEFAULT_TENANT, job_filter, cursor=page.next_cursor, limit=2)
        found += page.jobs
        pages += 1
    ids = [job.id for job in found]
    assert ids == sorted(set(ids), reverse=True)
    assert len(ids) == expected
    assert pages <= 2 * ROWS // PAGE_ROWS + expected + 1


async def test_a_tenant_sees_its_own_jobs_only(big: Connection) -> None:
    assert len((await list_jobs(big, STRANGER, JobFilter())).jobs) == 4
    batch = await list_jobs(big, STRANGER, JobFilter(batch_id=BATCH))
    assert (batch.jobs, batch.next_cursor) == ((), None)
    for tenant_id in (STRANGER, DEFAULT_TENANT):
        for job_filter in COMMON:
            page = await list_jobs(big, tenant_id, job_filter)
            assert {job.tenant_id for job in page.jobs} <= {tenant_id}
