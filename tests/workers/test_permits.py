"""Whoever records the ends of jobs counts the permits that they gave back without a lock; a sweeper
counts what was left.
"""

import anyio
import pytest

from jobs import limits
from jobs.announcer import Announcer
from jobs.limits import count_returned
from jobs.live import LiveStream
from jobs.model import DEFAULT_TENANT, ClaimedJob, SlotId
from jobs.results import Ready
from runtime.postgres import Connection, Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.jobs.desk import DONE, Desk, probe
from workers import recorder
from workers.recorder import Book, Recorder
from workers.sweeper import Sweeper

pytestmark = pytest.mark.anyio


@pytest.fixture
async def desk(db: Pool) -> Desk:
    return Desk(db)


async def _running(desk: Desk) -> tuple[SlotId, ClaimedJob]:
    """One of two jobs of a key that has permits for eight."""
    async with desk.pool.acquire() as connection:
        await limits.put(connection, DEFAULT_TENANT, "k", 8)
    await desk.enqueue(*(probe(concurrency_key="k") for _ in range(2)))
    slot = await desk.slot()
    first, _ = await desk.claim(slot)
    return slot, first


def _recorder(desk: Desk, slot: SlotId, redis: Client) -> Recorder:
    announcer = Announcer(redis, LiveStream(redis))
    return Recorder(Book(desk.pool, announcer, desk.kinds, slot, lambda _: None))


async def _counted(desk: Desk) -> tuple[int, int]:
    counted = await desk.pool.fetchval("SELECT in_use FROM limits")
    return counted, await desk.pool.fetchval("SELECT count(*) FROM returned_permits")


async def test_soon(desk: Desk, redis: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slot, job = await _running(desk)
    counted = anyio.Event()

    async def count(connection: Connection) -> Ready:
        ready = await count_returned(connection)
        counted.set()
        return ready

    monkeypatch.setattr(limits, "count_returned", count)
    ours = _recorder(desk, slot, redis)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ours.run)
        ours.add(job, DONE, 0.0)
        with anyio.fail_after(60):
            await counted.wait()
        assert await _counted(desk) == (1, 0)
        ours.close()


async def test_before_it_ends(desk: Desk, redis: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "GATHER_S", 3600.0)
    slot, job = await _running(desk)
    ours = _recorder(desk, slot, redis)
    ours.add(job, DONE, 0.0)
    ours.close()
    with anyio.fail_after(60):
        await ours.run()
    assert await _counted(desk) == (1, 0)


async def test_a_sweeper_counts_what_was_left_and_wakes_who_waited(
    desk: Desk, redis: Client, settings: Settings
) -> None:
    slot, job = await _running(desk)
    await desk.end(slot, [job])
    jobs = await desk.enqueue(*(probe(concurrency_key="k") for _ in range(7)))
    assert await desk.states(jobs[-1].id) == ["scheduled"]
    assert await _counted(desk) == (8, 1)
    await Sweeper(settings, desk.pool, redis, desk.kinds).sweep()
    assert await _counted(desk) == (8, 0)
    assert await desk.states(jobs[-1].id) == ["queued"]
    assert await redis.zscore("arq:queue:probe", str(jobs[-1].id)) is not None


async def test_a_server_that_is_away_is_waited_out(
    desk: Desk, redis: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, job = await _running(desk)
    tried = anyio.Event()

    async def fail_once(connection: Connection) -> Ready:
        if tried.is_set():
            return await count_returned(connection)
        tried.set()
        raise OSError

    monkeypatch.setattr(limits, "count_returned", fail_once)
    ours = _recorder(desk, slot, redis)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ours.run)
        ours.add(job, DONE, 0.0)
        with anyio.fail_after(60):
            await tried.wait()
        assert await _counted(desk) == (2, 1)
        ours.close()
    assert await _counted(desk) == (1, 0)
