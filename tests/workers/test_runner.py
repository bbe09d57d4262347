"""A slot's loop in this process: what it holds stays bounded whatever Postgres does, and it turns
whatever its handlers do.
"""

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from jobs import ledger, slots
from jobs.kinds import Kind, KindRegistry, ProbePayload, load_kinds
from jobs.live import LiveStream
from jobs.model import DEFAULT_TENANT, ClaimedJob, NewJob
from runtime.errors import PostgresAwayError
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from workers.board import Board
from workers.pace import CLAIM_MAX, Pace
from workers.recorder import UNRECORDED_MAX
from workers.run import Services
from workers.runner import Post, Runner
from workers.verdicts import STALL_S

pytestmark = pytest.mark.anyio

# What the product promises for a job in a slot's hands.
CANCEL_S = 5.0
SPINNER = Kind(
    "spinner",
    ProbePayload,
    "probe",
    "tests.support.handlers:spin",
    exclusive=False,
    in_hand=1000,
)
KINDS = KindRegistry(MappingProxyType({**load_kinds().kinds, SPINNER.name: SPINNER}))


@pytest.fixture
async def runner(db: Pool, redis: Client, settings: Settings) -> AsyncIterator[Runner]:
    """A slot of the pool `probe`, registered but not yet running."""
    async with db.acquire() as connection:
        slot_id = await slots.register(
            connection,
            supervisor_id=uuid4(),
            pool="probe",
            number=0,
            host="test",
            pid=os.getpid(),
            cores=[0],
            kinds=["probe", "spinner"],
        )
    services = Services(settings, KINDS, db, LiveStream(redis), cores=1)
    board = Board.create()
    yield Runner(Post(slot_id, "probe", board, redis, services))
    board.close()


async def until_full(runner: Runner) -> None:
    while True:
        if runner.is_full and runner.unrecorded >= UNRECORDED_MAX:
            return
        await anyio.sleep(0.01)


async def until_finished(db: Pool, jobs: int) -> None:
    while True:
        if await db.fetchval("SELECT count(*) FROM history") == jobs:
            return
        await anyio.sleep(0.02)


async def test_it_claims_no_more_while_nothing_can_be_recorded(
    db: Pool, runner: Runner, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    jobs = 6 * UNRECORDED_MAX
    async with db.acquire() as enqueuing:
        await ledger.enqueue(enqueuing, DEFAULT_TENANT, [NewJob("probe", {})] * jobs, kinds=KINDS)
    most = UNRECORDED_MAX + KINDS["probe"].in_hand + CLAIM_MAX
    with anyio.fail_after(90):
        async with anyio.create_task_group() as tasks:
            # Outcomes wait for this lock, claims do not.
            async with connection.transaction():
                await connection.execute("LOCK TABLE history IN ACCESS EXCLUSIVE MODE")
                tasks.start_soon(runner.run)
                await until_full(runner)
                assert await db.fetchval("SELECT count(*) FROM held") <= most < jobs
            await until_finished(db, jobs)
            runner.drain()


def test_a_shared_pool_claims_no_further_ahead_than_its_jobs_can_start() -> None:
    pace = Pace([KINDS["probe"]])
    for _ in range(10):
        pace.waited(1.0)
        pace.claimed()
    assert pace.room(0, 0) == 1
    for _ in range(10):
        pace.waited(0.001)
        pace.claimed()
    assert pace.room(0, 0) == CLAIM_MAX
    assert pace.room(0, KINDS["probe"].in_hand - 3) == 3


def test_an_exclusive_pool_holds_one_job_unless_they_are_short() -> None:
    pace = Pace([KINDS["embed"]])
    assert pace.room(0, 0) == 1
    assert pace.room(0, 1) == 0
    for _ in range(100):
        pace.ran(0.005)
    assert pace.room(0, 1) == 8


async def test_jobs_of_a_claim_whose_answer_was_lost_are_given_back(
    db: Pool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with db.acquire() as connection:
        await ledger.enqueue(connection, DEFAULT_TENANT, [NewJob("probe", {})] * 3, kinds=KINDS)
    claim, lost = ledger.claim, list[UUID]()

    async def claim_but_lose_the_answer(*args: Any, **options: Any) -> list[ClaimedJob]:
        jobs = await claim(*args, **options)
        if not lost and jobs:
            lost.extend(job.id for job in jobs)
            message = "connection was closed in the middle of operation"
            raise PostgresAwayError(message)
        return jobs

    monkeypatch.setattr(ledger, "claim", claim_but_lose_the_answer)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run)
            await until_finished(db, 3)
            runner.drain()
    attempts = await db.fetch("SELECT job_id, outcome FROM attempts")
    assert {row["job_id"] for row in attempts} == set(lost)
    assert {row["outcome"] for row in attempts} == {"released"}
    assert {row["failures"] for row in await db.fetch("SELECT failures FROM history")} == {0}


async def put(db: Pool, jobs: Sequence[NewJob]) -> list[UUID]:
    async with db.acquire() as connection:
        accepted = await ledger.enqueue(connection, DEFAULT_TENANT, jobs, kinds=KINDS)
    return [job.id for job in accepted]


async def is_over(db: Pool, job_id: UUID) -> None:
    while True:
        if await db.fetchval("SELECT true FROM history WHERE id = $1", job_id):
            return
        await anyio.sleep(0.01)


class Watch:
    """Looks at the board from a thread, as the supervisor does from its process: the slot's loop
    has no say in it.
    """

    def __init__(self, board: Board) -> None:
        self.longest_stall_s = 0.0
        self._board = board
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            # A slot in which nothing runs rests, and has not stood still.
            if self._board.read():
                age_s = time.monotonic() - self._board.turned_ns / 1e9
                self.longest_stall_s = max(self.longest_stall_s, age_s)


async def test_a_cancel_a_timeout_and_signs_of_life_pass_jobs_that_never_suspend(
    db: Pool, runner: Runner
) -> None:
    asked, late = await put(
        db,
        [
            NewJob("probe", {"sleep_s": 3600.0}),
            NewJob("probe", {"sleep_s": 3600.0}, timeout_s=0.5, max_attempts=1),
        ],
    )
    # Many more than can run until both are over: whatever happens, happens beside them.
    first, *_ = await put(db, [NewJob("spinner", {})] * 12_000)
    watch = Watch(runner.post.board)
    with anyio.fail_after(90), watch.running():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run)
            await is_over(db, first)
            async with db.acquire() as connection:
                await ledger.cancel(connection, DEFAULT_TENANT, [asked])
            with anyio.fail_after(CANCEL_S):
                runner.cancel(asked)
                await is_over(db, asked)
            await is_over(db, late)
            assert await db.fetchval("SELECT count(*) FROM ready") > 0
            runner.drain()
    assert watch.longest_stall_s < STALL_S
    ended = {row["id"]: row for row in await db.fetch("SELECT * FROM history WHERE kind = 'probe'")}
    assert ended[asked]["state"] == "cancelled"
    assert ended[late]["state"] == "failed"
    lasted = ended[late]["finished_at"] - ended[late]["started_at"]
    assert lasted.total_seconds() < 0.5 + CANCEL_S
