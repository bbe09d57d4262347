"""Permits that are given back without a lock, and counted later: nothing exceeds a limit by it, and
nobody waits for long.
"""

import anyio
import pytest

from jobs import limits
from jobs.model import DEFAULT_TENANT, ClaimedJob, SlotId
from jobs.states import ScheduledReason
from runtime.postgres import Connection
from runtime.sql import load_queries
from tests.jobs.desk import DONE, Desk, probe
from tests.support.planner import PLAN_MODES, Belief, filled, rows_read

pytestmark = pytest.mark.anyio


async def _put(desk: Desk, concurrency: int, key: str = "k") -> limits.Limit:
    async with desk.pool.acquire() as connection:
        limit, _ = await limits.put(connection, DEFAULT_TENANT, key, concurrency)
    return limit


async def _running(desk: Desk, jobs: int, *, limit: int) -> tuple[SlotId, list[ClaimedJob]]:
    await _put(desk, limit)
    await desk.enqueue(*(probe(concurrency_key="k") for _ in range(jobs)))
    slot = await desk.slot()
    return slot, await desk.claim(slot)


async def _counted(desk: Desk) -> int:
    """What the key's row counts, before or after what was given back."""
    async with desk.pool.acquire() as connection:
        return int(await connection.fetchval("SELECT in_use FROM limits WHERE key = 'k'"))


async def _told(desk: Desk) -> int:
    async with desk.pool.acquire() as connection:
        (limit,) = await limits.list_limits(connection, DEFAULT_TENANT)
    return limit.in_use


async def test_the_end_of_a_job_waits_for_nobody_while_its_key_has_plenty(desk: Desk) -> None:
    slot, jobs = await _running(desk, 10, limit=40)
    async with desk.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM limits FOR UPDATE")
        recorded = await desk.end(slot, jobs[:3])
    assert recorded.has_returned
    assert (await _counted(desk), await _told(desk)) == (10, 7)
    async with desk.pool.acquire() as connection:
        assert not await limits.count_returned(connection)
        assert not await connection.fetchval("SELECT count(*) FROM returned_permits")
    assert (await _counted(desk), await _told(desk)) == (7, 7)


@pytest.mark.parametrize(("limit", "jobs", "waits"), [(1, 1, False), (4, 2, False), (80, 75, True)])
async def test_a_key_with_few_permits_left_has_its_own_back_at_once(
    desk: Desk, limit: int, jobs: int, *, waits: bool
) -> None:
    slot, claimed = await _running(desk, jobs, limit=limit)
    recorded = await desk.end(slot, claimed[:1])
    assert not recorded.has_returned
    assert await _counted(desk) == jobs - 1
    if waits:
        recorded = await desk.end(slot, claimed[1:])
        assert not recorded.has_returned


async def test_whoever_came_to_wait_meanwhile_is_queued_when_they_are_counted(desk: Desk) -> None:
    slot, jobs = await _running(desk, 2, limit=8)
    assert (await desk.end(slot, jobs[:1])).has_returned
    more = await desk.enqueue(*(probe(concurrency_key="k") for _ in range(8)))
    assert [job.state for job in more] == ["queued"] * 6 + ["scheduled"] * 2
    assert (await desk.get(more[6].id)).state_reason is ScheduledReason.LIMIT
    async with desk.pool.acquire() as connection:
        assert await limits.count_returned(connection) == {"probe": (more[6].id,)}
        assert not await limits.count_returned(connection)
    assert await desk.states(more[6].id, more[7].id) == ["queued", "scheduled"]
    recorded = await desk.end(slot, jobs[1:])
    assert recorded.ready == {"probe": (more[7].id,)}


async def test_the_audit_counts_nothing_twice(desk: Desk) -> None:
    slot, jobs = await _running(desk, 10, limit=40)
    await desk.end(slot, jobs[:4])
    async with desk.pool.acquire() as connection:
        assert not await limits.audit(connection)
        assert await _counted(desk) == 10
        await connection.execute("UPDATE limits SET in_use = 0")
        assert not await limits.audit(connection)
        assert await _counted(desk) == 10
        assert not await limits.count_returned(connection)
    assert await _counted(desk) == 6


async def test_they_are_counted_once_however_many_do(desk: Desk) -> None:
    slot, jobs = await _running(desk, 20, limit=60)
    await desk.end(slot, jobs[:3])
    async with desk.pool.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.fetch(load_queries("jobs")["take_returned"], 100)
        await desk.end(slot, jobs[3:5])
        async with desk.pool.acquire() as connection:
            await limits.count_returned(connection)
            assert (await _counted(desk), await _told(desk)) == (18, 15)
            # It died before its commit.
            await transaction.rollback()
            await limits.count_returned(connection)
    assert (await _counted(desk), await _told(desk)) == (15, 15)


async def test_a_row_that_is_gone_keeps_nobody(desk: Desk) -> None:
    slot, jobs = await _running(desk, 2, limit=8)
    await desk.end(slot, jobs)
    async with desk.pool.acquire() as connection:
        await connection.execute("DELETE FROM limits")
        assert not await limits.count_returned(connection)


async def test_limits_hold_while_permits_are_returned_and_counted(desk: Desk) -> None:
    total, limit = 150, 9
    await _put(desk, limit)
    running = ended = most = returned = 0

    async def submit() -> None:
        for _ in range(total // 15):
            await desk.enqueue(*(probe(concurrency_key="k") for _ in range(15)))

    async def drain() -> None:
        nonlocal running, ended, most, returned
        slot = await desk.slot()
        while ended < total:
            jobs = await desk.claim(slot, 3)
            running += len(jobs)
            most = max(most, running)
            await anyio.lowlevel.checkpoint()
            running -= len(jobs)
            for job in jobs:
                returned += (await desk.end(slot, [job], DONE)).has_returned
            ended += len(jobs)

    async def count() -> None:
        while ended < total:
            async with desk.pool.acquire() as connection:
                await limits.count_returned(connection)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for work in (submit, drain, drain, drain, count):
            tasks.start_soon(work)
    assert 1 < most <= limit
    assert returned


@pytest.mark.parametrize("belief", Belief)
async def test_a_promotion_reads_what_it_promotes(desk: Desk, belief: Belief) -> None:
    """Not all that wait for the key, whatever the planner believes of the table."""
    query = load_queries("jobs")["promote_permitted"]

    async def fill(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id,"
            " concurrency_key) SELECT gen_random_uuid(), 'limit', now(), now() + n *"
            " interval '1 ms', 'probe', 'probe', 1, 'k' FROM generate_series(1, 5000) AS n"
        )

    async with desk.pool.acquire() as connection, filled(connection, belief, ["parked"], fill):
        for mode in PLAN_MODES:
            await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
            read = await rows_read(connection, lambda: connection.fetch(query, [1], ["k"], [3]))
            # Once to lock and once to move them.
            assert read <= 2 * 3, mode
