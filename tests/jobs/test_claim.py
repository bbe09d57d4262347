"""Claims: order, fences, pauses, dead slots."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
import pytest

from jobs import ledger, pools, slots
from jobs.errors import SlotEnded, StaleToken
from jobs.model import NewJob, Token
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio


async def test_claims_go_by_priority_and_then_by_age(desk: Desk) -> None:
    low, first, high, second = await desk.enqueue(
        probe(priority=0), probe(), probe(priority=9), probe()
    )
    claimed = await desk.claim(await desk.slot())
    assert [job.id for job in claimed] == [high.id, first.id, second.id, low.id]


async def test_waiting_outweighs_priority(desk: Desk) -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    urgent, old = await desk.enqueue(probe(priority=9), probe(priority=0, run_at=an_hour_ago))
    claimed = await desk.claim(await desk.slot())
    assert [job.id for job in claimed] == [old.id, urgent.id]


async def test_a_claim_takes_only_its_pool_and_its_kinds(desk: Desk) -> None:
    await desk.enqueue(NewJob("embed", {"texts": ["x"]}))
    (own,) = await desk.enqueue(probe())
    slot = await desk.slot()
    async with desk.pool.acquire() as connection:
        assert await ledger.claim(connection, slot, "probe", ["other"], 10) == []
    assert [job.id for job in await desk.claim(slot)] == [own.id]


async def test_two_claimers_never_share(desk: Desk) -> None:
    await desk.enqueue(*(probe() for _ in range(1000)))
    taken: list[object] = []

    async def drain() -> None:
        slot = await desk.slot()
        while jobs := await desk.claim(slot, 17):
            taken.extend(job.id for job in jobs)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(drain)
    assert len(taken) == 1000
    assert len(set(taken)) == 1000


async def test_a_dead_slot_is_given_nothing(desk: Desk) -> None:
    (job,) = await desk.enqueue(probe())
    slot = await desk.slot()
    async with desk.pool.acquire() as connection:
        assert await slots.end(connection, slot, "test")
        assert not await slots.end(connection, slot, "again")
    with pytest.raises(SlotEnded):
        await desk.claim(slot)
    assert await desk.states(job.id) == ["queued"]


async def test_death_waits_for_the_claim_under_it_and_finds_its_jobs(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    ended = anyio.Event()

    async def end() -> None:
        async with desk.pool.acquire() as connection:
            await slots.end(connection, slot, "test")
        ended.set()

    async with anyio.create_task_group() as tasks, desk.pool.acquire() as connection:
        async with connection.transaction():
            claimed = await ledger.claim(connection, slot, "probe", ["probe"], 1)
            tasks.start_soon(end)
            async with desk.pool.acquire() as other:
                while not await other.fetch("SELECT 1 FROM pg_locks WHERE NOT granted"):
                    await anyio.lowlevel.checkpoint()
            assert not ended.is_set()
        await ended.wait()
    async with desk.pool.acquire() as connection:
        assert await slots.ended_holding(connection) == [slot]
    assert len(claimed) == 1


async def test_a_paused_pool_gives_nothing_until_it_is_resumed(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    async with desk.pool.acquire() as connection:
        await pools.pause(connection, "probe", by="ann", reason="upgrade")
        await pools.pause(connection, "probe", by="bob")
        assert await desk.claim(slot) == []
        (pool,) = await pools.list_pools(connection, ["probe"], kinds=desk.kinds)
        assert (pool.paused_by, pool.paused_reason, pool.queued) == ("ann", "upgrade", 1)
        await pools.resume(connection, "probe")
    assert len(await desk.claim(slot)) == 1


async def test_a_stale_token_is_refused(desk: Desk) -> None:
    await desk.enqueue(probe())
    (job,) = await desk.claim(await desk.slot())
    async with desk.pool.acquire() as connection, connection.transaction():
        await ledger.assert_held(connection, job.id, job.token)
        with pytest.raises(StaleToken):
            await ledger.assert_held(connection, job.id, Token(job.token + 1))


async def test_claimed_again_a_job_has_a_new_token_and_a_higher_attempt(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    (first,) = await desk.claim(slot)
    async with desk.pool.acquire() as connection:
        await slots.end(connection, slot, "test")
    await slots.rescue(desk.pool, slot, started=[], kinds=desk.kinds)
    (second,) = await desk.claim(await desk.slot())
    assert second.token != first.token
    assert second.attempt == first.attempt + 1
    recorded = await desk.end(slot, [first])
    assert recorded.stale == {first.id}
    assert await desk.states(first.id) == ["running"]


async def test_claims_that_skip_what_was_claimed_before_miss_no_job(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy this machine is, no claim of this test counts as slow.
    monkeypatch.setattr("jobs.claim._SLOW_S", 60.0)
    slot, head = await desk.slot(), ledger.Head()
    first, second = await desk.enqueue(probe(), probe())

    async def claim() -> list[UUID]:
        async with desk.pool.acquire() as connection:
            jobs = await ledger.claim(connection, slot, "probe", ["probe"], 1, head=head)
        return [job.id for job in jobs]

    assert await claim() == [first.id]
    assert head.place() is None
    # As if that look from the front had taken ten minutes.
    async with desk.pool.acquire() as connection:
        last = await connection.fetchval("SELECT max(sort_at) FROM ready")
    head.saw(last, 600.0, was_front=True)
    (urgent,) = await desk.enqueue(probe(priority=9))
    assert await claim() == [second.id]
    assert await claim() == [urgent.id]
    assert await claim() == []
    for job_id in (first.id, second.id, urgent.id):
        assert await desk.states(job_id) == ["running"]
