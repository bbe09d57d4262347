"""Everything at once on a few connections: no deadlock reaches a caller, no invariant breaks."""

import random
from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import pytest

from jobs import batches, ledger, limits, slots
from jobs.batches import NewBatch
from jobs.model import DEFAULT_TENANT, NewJob, Unique
from jobs.outcomes import Cancelled, Completed, Ending, Released
from jobs.results import Ended
from jobs.states import OnParentFailure
from runtime.postgres import Connection
from tests.jobs.desk import BROKEN, DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio

ROUNDS = 60


def _job(rng: random.Random, known: list[UUID]) -> NewJob:
    parents = (str(rng.choice(known)),) if known and rng.random() < 0.3 else ()
    return probe(
        priority=rng.randrange(10),
        delay_s=rng.choice([None, None, 0.0, 0.01]),
        max_attempts=rng.randrange(1, 4),
        unique=Unique(f"u{rng.randrange(20)}") if rng.random() < 0.2 else None,
        concurrency_key=rng.choice([None, None, "k1", "k2"]),
        depends_on=parents,
        on_parent_failure=rng.choice(list(OnParentFailure)),
        callback_url=rng.choice([None, "https://example.org/"]),
    )


class Chaos:
    """Actors that share jobs, keys, families and batches as much as they can."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.known: list[UUID] = []
        self.batches: list[UUID] = []

    async def submit(self, connection: Connection, rng: random.Random) -> None:
        batch_id = None
        async with connection.transaction():
            if rng.random() < 0.5:
                batch_id = await batches.create(connection, DEFAULT_TENANT, NewBatch())
            accepted = await ledger.enqueue(
                connection,
                DEFAULT_TENANT,
                [_job(rng, self.known[-50:]) for _ in range(rng.randrange(1, 15))],
                kinds=self.desk.kinds,
                batch_id=batch_id,
            )
        self.known += [job.id for job in accepted]
        self.batches += [batch_id] if batch_id else []

    async def work(self, connection: Connection, rng: random.Random) -> None:
        slot = await self.desk.slot()
        for _ in range(3):
            jobs = await ledger.claim(connection, slot, "probe", ["probe"], rng.randrange(1, 20))
            kept = [job for job in jobs if rng.random() < 0.9]
            recorded = await ledger.record(
                connection,
                slot,
                [Ended(job, self._ending(rng)) for job in kept],
                kinds=self.desk.kinds,
                rng=rng,
            )
            assert not recorded.stale
            await batches.finish_due(connection, recorded.batches)
        await slots.end(connection, slot, "test")
        await slots.rescue(self.desk.pool, slot, started=None, kinds=self.desk.kinds)

    def _ending(self, rng: random.Random) -> Ending:
        follow_ups = tuple(_job(rng, []) for _ in range(rng.randrange(3)))
        endings: list[Ending] = [DONE, BROKEN, HOPELESS, Released("x"), Cancelled("y")]
        return rng.choice([*endings, Completed(1, follow_ups)])

    async def cancel(self, connection: Connection, rng: random.Random) -> None:
        ids = rng.sample(self.known, min(len(self.known), 5))
        await ledger.cancel(connection, DEFAULT_TENANT, ids)

    async def retry(self, connection: Connection, rng: random.Random) -> None:
        ids = rng.sample(self.known, min(len(self.known), 5))
        await ledger.retry(connection, DEFAULT_TENANT, ids)
        if self.batches and rng.random() < 0.2:
            await batches.retry(connection, DEFAULT_TENANT, rng.choice(self.batches))

    async def sweep(self, connection: Connection, rng: random.Random) -> None:
        await ledger.promote_due(connection, 50)
        await ledger.expire(connection, 50)
        await limits.put(connection, DEFAULT_TENANT, rng.choice(["k1", "k2"]), rng.randrange(1, 4))
        await limits.audit(connection)
        await batches.finish_due(connection)


async def test_everything_at_once_keeps_every_invariant(desk: Desk) -> None:
    chaos = Chaos(desk)
    seeds = random.Random(20_26)

    async def act(*verbs: Callable[[Connection, random.Random], Awaitable[None]]) -> None:
        rng = random.Random(seeds.random())
        for _ in range(ROUNDS):
            async with desk.pool.acquire() as connection:
                await rng.choice(verbs)(connection, rng)

    async with desk.pool.acquire() as connection:
        await chaos.submit(connection, seeds)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act, chaos.submit, chaos.work)
            tasks.start_soon(act, chaos.work, chaos.work)
            tasks.start_soon(act, chaos.cancel, chaos.retry, chaos.sweep)
            tasks.start_soon(act, chaos.sweep, chaos.work, chaos.cancel)
    async with desk.pool.acquire() as connection:
        # What is left is cancelled, so that the end of everything is audited as well.
        await desk.audit()
        await ledger.cancel(connection, DEFAULT_TENANT, chaos.known)
        assert await connection.fetchval("SELECT count(*) FROM jobs") == 0
        await batches.finish_due(connection, limit=10_000)
        unfinished = "SELECT count(*) FROM batches WHERE state <> 'finished'"
        assert await connection.fetchval(unfinished) == 0
