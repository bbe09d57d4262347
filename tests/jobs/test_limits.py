"""Permits of concurrency keys."""

import anyio
import pytest

from jobs import ledger, limits
from jobs.model import DEFAULT_TENANT
from jobs.outcomes import Released
from jobs.states import ScheduledReason
from tests.jobs.desk import BROKEN, Desk, probe

pytestmark = pytest.mark.anyio


async def _put(desk: Desk, concurrency: int, key: str = "k") -> limits.Limit:
    async with desk.pool.acquire() as connection:
        limit, _ = await limits.put(connection, DEFAULT_TENANT, key, concurrency)
    return limit


async def test_one_job_a_key_unless_a_limit_says_more(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe(concurrency_key="k") for _ in range(3)))
    assert [job.state for job in accepted] == ["queued", "scheduled", "scheduled"]
    assert (await desk.get(accepted[1].id)).state_reason is ScheduledReason.LIMIT
    limit = await _put(desk, 2)
    assert (limit.in_use, limit.waiting) == (2, 1)
    assert await desk.states(accepted[1].id) == ["queued"]


async def test_the_end_of_one_queues_the_next_in_order(desk: Desk) -> None:
    await desk.enqueue(probe(concurrency_key="k"))
    _, urgent = await desk.enqueue(
        probe(concurrency_key="k", priority=1), probe(concurrency_key="k", priority=8)
    )
    slot = await desk.slot()
    recorded = await desk.end(slot, await desk.claim(slot))
    assert recorded.ready == {"probe": (urgent.id,)}


async def test_equals_are_queued_as_they_were_submitted(desk: Desk) -> None:
    jobs = await desk.enqueue(*(probe(concurrency_key="k") for _ in range(8)))
    slot = await desk.slot()
    claimed = []
    for _ in jobs:
        found = await desk.claim(slot)
        claimed += [job.id for job in found]
        await desk.end(slot, found)
    assert claimed == [job.id for job in jobs]


async def test_a_backed_off_job_gives_its_permit_to_another(desk: Desk) -> None:
    first, second = await desk.enqueue(probe(concurrency_key="k"), probe(concurrency_key="k"))
    slot = await desk.slot()
    recorded = await desk.end(slot, await desk.claim(slot), BROKEN)
    assert recorded.ready == {"probe": (second.id,)}
    async with desk.pool.acquire() as connection:
        due = (await desk.get(first.id)).run_at
        assert not await ledger.promote_due(connection, 10, now=due)
    assert (await desk.get(first.id)).state_reason is ScheduledReason.LIMIT


async def test_a_given_back_job_keeps_its_permit(desk: Desk) -> None:
    first, _ = await desk.enqueue(probe(concurrency_key="k"), probe(concurrency_key="k"))
    slot = await desk.slot()
    recorded = await desk.end(slot, await desk.claim(slot), Released("shutdown"))
    assert recorded.ready == {"probe": (first.id,)}


async def test_cancelling_a_queued_job_passes_its_permit_on(desk: Desk) -> None:
    first, second = await desk.enqueue(probe(concurrency_key="k"), probe(concurrency_key="k"))
    async with desk.pool.acquire() as connection:
        result = await ledger.cancel(connection, DEFAULT_TENANT, [first.id])
    assert result.ready == {"probe": (second.id,)}


async def test_a_limit_of_zero_holds_everything(desk: Desk) -> None:
    await _put(desk, 0)
    (job,) = await desk.enqueue(probe(concurrency_key="k"))
    assert job.state == "scheduled"
    await _put(desk, 1)
    assert await desk.states(job.id) == ["queued"]


async def test_permits_are_never_exceeded_under_load(desk: Desk) -> None:
    for key in ("a", "b"):
        await _put(desk, 3, key)
    running: dict[str, int] = {"a": 0, "b": 0}
    most = dict(running)
    keys: dict[object, str] = {}
    for n in range(120):
        key = "ab"[n % 2]
        (job,) = await desk.enqueue(probe(concurrency_key=key))
        keys[job.id] = key
    ended = 0

    async def drain() -> None:
        nonlocal ended
        slot = await desk.slot()
        while ended < 120:
            jobs = await desk.claim(slot, 4)
            for job in jobs:
                running[keys[job.id]] += 1
            for key, n in running.items():
                most[key] = max(most[key], n)
            await anyio.lowlevel.checkpoint()
            for job in jobs:
                running[keys[job.id]] -= 1
            await desk.end(slot, jobs)
            ended += len(jobs)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(drain)
    assert 1 < max(most.values()) <= 3


async def test_the_audit_mends_a_counter_and_gives_out_what_was_lost(desk: Desk) -> None:
    first, second = await desk.enqueue(probe(concurrency_key="k"), probe(concurrency_key="k"))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    async with desk.pool.acquire() as connection:
        await connection.execute("UPDATE limits SET in_use = 5")
        assert not await limits.audit(connection)
        await connection.execute("UPDATE limits SET in_use = 0, concurrency = 2")
        assert not await limits.audit(connection)
        assert [(x.in_use, x.waiting) for x in await limits.list_limits(connection, DEFAULT_TENANT)]
    assert await desk.states(first.id, second.id) == ["succeeded", "queued"]
