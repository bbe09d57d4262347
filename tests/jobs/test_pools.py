"""Pools that operators stop: claims end at once, and everybody sees by whom and why."""

import anyio
import pytest

from jobs import pools
from jobs.pools import Pool
from tests.jobs.desk import DONE, Desk, probe

pytestmark = pytest.mark.anyio


async def _pool(desk: Desk, name: str = "probe") -> Pool:
    async with desk.pool.acquire() as connection:
        found = await pools.list_pools(connection, [name], kinds=desk.kinds)
    return next(pool for pool in found if pool.name == name)


async def test_after_a_pause_no_slot_claims_and_what_runs_goes_on(desk: Desk) -> None:
    await desk.enqueue(*(probe() for _ in range(6)))
    one, other = await desk.slot(), await desk.slot()
    running = await desk.claim(one, 2)
    async with desk.pool.acquire() as connection:
        await pools.pause(connection, "probe", by="ann", reason="repairs")
        await pools.pause(connection, "probe", by="bob", reason="late")
    assert [await desk.claim(slot) for slot in (one, other)] == [[], []]
    paused = await _pool(desk)
    assert (paused.paused_by, paused.paused_reason) == ("ann", "repairs")
    assert (paused.queued, paused.running) == (4, 2)
    assert paused.paused_at is not None
    await desk.end(one, running, DONE)
    async with desk.pool.acquire() as connection:
        await pools.resume(connection, "probe")
    resumed = await _pool(desk)
    assert (resumed.paused_at, resumed.paused_by, resumed.paused_reason) == (None, None, None)
    assert [len(await desk.claim(slot, 2)) for slot in (one, other)] == [2, 2]


async def test_another_pool_goes_on(desk: Desk) -> None:
    await desk.enqueue(probe())
    async with desk.pool.acquire() as connection:
        await pools.pause(connection, "embed", by="ann")
    assert len(await desk.claim(await desk.slot())) == 1


async def test_a_pause_ends_two_slots_that_claim_as_fast_as_they_can(desk: Desk) -> None:
    """Every claim that began after the pause was committed is empty, whoever asks."""
    await desk.enqueue(*(probe() for _ in range(2000)))
    slots = [await desk.slot(), await desk.slot()]
    is_paused = False
    late: list[int] = []
    claims = 0

    async def drain(slot: int) -> None:
        nonlocal claims
        while len(late) < 20:
            began_paused = is_paused
            claimed = await desk.claim(slots[slot], 5)
            claims += bool(claimed)
            if began_paused:
                late.append(len(claimed))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(drain, 0)
            group.start_soon(drain, 1)
            while claims < 10:
                await anyio.lowlevel.checkpoint()
            async with desk.pool.acquire() as connection:
                await pools.pause(connection, "probe", by="ann")
            is_paused = True
    assert set(late) == {0}
    assert (await _pool(desk)).queued > 0
