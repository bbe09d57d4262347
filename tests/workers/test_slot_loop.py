"""A slot's loop under load, in this process: jobs know nothing of each other, none waits for its
cancellation behind another, and memory stays bounded.
"""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from jobs import ledger, slots
from jobs.kinds import Kind, KindRegistry, ProbePayload
from jobs.live import LiveStream
from jobs.model import DEFAULT_TENANT, NewJob
from jobs.results import Ended, Recorded
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from workers import recorder
from workers.board import Board
from workers.pace import Pace
from workers.run import Services
from workers.runner import Post, Runner

pytestmark = pytest.mark.anyio

# What the product promises for a job in a slot's hands.
CANCEL_S = 5.0
MIB = 1024 * 1024

PROBE = "workers.handlers.probe:handle"
HANDLERS = "tests.support.handlers"
KINDS = KindRegistry(
    MappingProxyType(
        {
            kind.name: kind
            for kind in (
                Kind("solo", ProbePayload, "alone", PROBE),
                Kind("lone", ProbePayload, "mixed", PROBE),
                Kind("mate", ProbePayload, "mixed", PROBE, exclusive=False, in_hand=8),
                Kind(
                    "careless",
                    ProbePayload,
                    "shared",
                    f"{HANDLERS}:leave_context",
                    exclusive=False,
                    in_hand=4,
                ),
                Kind(
                    "large",
                    ProbePayload,
                    "large",
                    f"{HANDLERS}:answer_a_megabyte",
                    exclusive=False,
                    in_hand=1000,
                ),
            )
        }
    )
)

type Slot = Callable[[str], Any]


@pytest.fixture
def slot(db: Pool, redis: Client, settings: Settings) -> Slot:
    """Registers a slot of a pool and runs it within a block; what it runs then must end."""

    @asynccontextmanager
    async def run(pool: str) -> AsyncIterator[Runner]:
        async with db.acquire() as connection:
            slot_id = await slots.register(
                connection,
                supervisor_id=uuid4(),
                pool=pool,
                number=0,
                host="test",
                pid=os.getpid(),
                cores=[0],
                kinds=[kind.name for kind in KINDS.of_pool(pool)],
            )
        board = Board.create()
        services = Services(settings, KINDS, db, LiveStream(redis), cores=1)
        runner = Runner(Post(slot_id, pool, board, redis, services))
        try:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(runner.run)
                    yield runner
                    runner.drain()
        finally:
            board.close()

    return run


async def put(db: Pool, jobs: Sequence[NewJob]) -> list[UUID]:
    async with db.acquire() as connection:
        accepted = await ledger.enqueue(connection, DEFAULT_TENANT, jobs, kinds=KINDS)
    return [job.id for job in accepted]


async def until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await anyio.sleep(0.01)


async def until_counted(db: Pool, table: str, count: int) -> None:
    while True:
        if await db.fetchval(f"SELECT count(*) FROM {table}") == count:  # noqa: S608 - ours
            return
        await anyio.sleep(0.02)


def claim_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the slot take five, as if its exclusive jobs had been short until now."""
    monkeypatch.setattr(Pace, "room", lambda _, waiting, running: 5 - waiting - running)


async def cancel_within_the_promise(db: Pool, runner: Runner, job_id: UUID) -> None:
    async with db.acquire() as connection:
        await ledger.cancel(connection, DEFAULT_TENANT, [job_id])
    with anyio.fail_after(CANCEL_S):
        while await db.fetchval("SELECT state FROM history WHERE id = $1", job_id) != "cancelled":
            # Again each time, as the supervisor does: the job may have been on its way.
            runner.cancel(job_id)
            await anyio.sleep(0.05)


@pytest.mark.parametrize("sleep_s", [0.0, 0.001])
async def test_jobs_see_nothing_of_what_others_leave_in_their_context(
    db: Pool, slot: Slot, sleep_s: float
) -> None:
    await put(db, [NewJob("careless", {"sleep_s": sleep_s})] * 40)
    async with slot("shared"):
        await until_counted(db, "history", 40)
    results = [row["result"] for row in await db.fetch("SELECT result FROM history")]
    assert results == [{"left": "nothing", "logged": []}] * 40


@pytest.mark.parametrize("kind", ["solo", "lone"])
async def test_a_job_that_waits_behind_an_exclusive_one_is_cancelled_at_once(
    db: Pool, slot: Slot, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_ahead(monkeypatch)
    first, second, third = await put(
        db, [NewJob(kind, {"sleep_s": 3600.0}), NewJob(kind, {}), NewJob(kind, {})]
    )
    async with slot(KINDS[kind].pool) as runner:
        await until_counted(db, "held", 3)
        await until(lambda: first in runner.in_hand)
        await cancel_within_the_promise(db, runner, second)
        assert list(runner.in_hand) == [first]
        await cancel_within_the_promise(db, runner, first)
        await until_counted(db, "history", 3)
    states = {row["id"]: row["state"] for row in await db.fetch("SELECT id, state FROM history")}
    assert states == {first: "cancelled", second: "cancelled", third: "succeeded"}


@pytest.mark.parametrize("kind", ["solo", "lone"])
async def test_a_slot_that_drains_gives_back_at_once_what_waits_behind_an_exclusive_job(
    db: Pool, slot: Slot, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_ahead(monkeypatch)
    first, *rest = await put(db, [NewJob(kind, {"sleep_s": 3600.0}), *[NewJob(kind, {})] * 4])
    async with slot(KINDS[kind].pool) as runner:
        await until_counted(db, "held", 5)
        await until(lambda: first in runner.in_hand)
        runner.drain()
        await until_counted(db, "ready", 4)
        assert list(runner.in_hand) == [first]
        await cancel_within_the_promise(db, runner, first)
    outcomes = await db.fetch("SELECT job_id, outcome FROM attempts WHERE job_id <> $1", first)
    assert {row["job_id"]: row["outcome"] for row in outcomes} == dict.fromkeys(rest, "released")


async def test_large_results_are_bounded_in_memory_and_in_a_commit(
    db: Pool,
    slot: Slot,
    connection: "asyncpg.Connection[asyncpg.Record]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "UNRECORDED_BYTES_MAX", 8 * MIB)
    monkeypatch.setattr(recorder, "BATCH_BYTES_MAX", 3 * MIB)
    jobs, commits = 40, list[int]()
    record = ledger.record

    async def weigh(
        connection: Any, slot_id: Any, batch: Sequence[Ended], **options: Any
    ) -> Recorded:
        commits.append(sum(len(ended.text or b"") for ended in batch))
        return await record(connection, slot_id, batch, **options)

    monkeypatch.setattr(ledger, "record", weigh)
    await put(db, [NewJob("large", {})] * jobs)
    async with slot("large") as runner:
        # Outcomes wait for this lock, claims do not.
        async with connection.transaction():
            await connection.execute("LOCK TABLE history IN ACCESS EXCLUSIVE MODE")
            await until(lambda: runner.unrecorded >= 8)
            # Whoever waits for room can still be cancelled, and one megabyte may go beyond.
            await anyio.wait_all_tasks_blocked()
            assert runner.unrecorded <= 9
            assert await db.fetchval("SELECT count(*) FROM held") > 9
        await until_counted(db, "history", jobs)
    assert MIB < max(commits) <= 3 * MIB
    assert await db.fetchval("SELECT count(*) FROM history WHERE state = 'succeeded'") == jobs
