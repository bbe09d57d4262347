"""Everything at once on a few connections: no deadlock reaches a caller, no promise breaks.

What the actors saw goes into a log, and the shared checker judges it beside what is left.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
import pytest

from chaos import history as seen
from chaos.checker import check
from chaos.collect import collect
from chaos.history import ClientLog, Effect, Run
from jobs import batches, ledger, limits, slots
from jobs.batches import NewBatch
from jobs.model import DEFAULT_TENANT, ClaimedJob, NewJob, Unique
from jobs.outcomes import Cancelled, Completed, Ending, Released
from jobs.results import Ended
from jobs.states import BatchState, OnParentFailure
from runtime.postgres import Connection
from tests.jobs.desk import BROKEN, DONE, HOPELESS, Desk, audit, probe

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


def _now() -> datetime:
    return datetime.now(UTC)


def _parents(job: NewJob) -> tuple[UUID, ...]:
    return tuple(map(UUID, job.depends_on))


def _run(job: ClaimedJob, began_at: datetime, ended_at: datetime | None) -> Run:
    return Run(job.id, job.token, job.attempt, job.slot_id, began_at, ended_at)


class Actors:
    """They share jobs, keys, families and batches as much as they can, and note what they see."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.known: list[UUID] = []
        self.batches: list[UUID] = []
        self.log = ClientLog()

    def note(self, **seen: Sequence[object]) -> None:
        """Add to the log's fields of these names."""
        added: dict[str, Any] = {
            name: (*getattr(self.log, name), *items) for name, items in seen.items()
        }
        self.log = replace(self.log, **added)

    async def submit(self, connection: Connection, rng: random.Random) -> None:
        batch_id = None
        jobs = [_job(rng, self.known[-50:]) for _ in range(rng.randrange(1, 15))]
        async with connection.transaction():
            if rng.random() < 0.5:
                batch_id = await batches.create(connection, DEFAULT_TENANT, NewBatch())
            accepted = await ledger.enqueue(
                connection, DEFAULT_TENANT, jobs, kinds=self.desk.kinds, batch_id=batch_id
            )
        self.known += [job.id for job in accepted]
        new = [
            (job, asked) for job, asked in zip(accepted, jobs, strict=True) if not job.deduplicated
        ]
        own = {job.id: _parents(asked) for job, asked in new}
        self.note(accepted=[seen.AcceptedJob(id_, _now(), None, p) for id_, p in own.items()])
        if batch_id is not None:
            self.batches.append(batch_id)
            self.note(batches=[seen.AcceptedBatch(batch_id, _now(), len(own))])

    async def work(self, connection: Connection, rng: random.Random) -> None:
        slot = await self.desk.slot()
        for _ in range(3):
            jobs = await ledger.claim(connection, slot, "probe", ["probe"], rng.randrange(1, 20))
            began_at = _now()
            ended = [Ended(job, self._ending(job, rng)) for job in jobs if rng.random() < 0.9]
            done = {end.job.id: _now() for end in ended}
            # Noted before the record, after which others may have the jobs.
            self.note(runs=[_run(job, began_at, done.get(job.id)) for job in jobs])
            recorded = await ledger.record(connection, slot, ended, kinds=self.desk.kinds, rng=rng)
            assert not recorded.stale
            await batches.finish_due(connection, recorded.batches)
        await slots.end(connection, slot, "test")
        await slots.rescue(self.desk.pool, slot, started=None, kinds=self.desk.kinds)

    def _ending(self, job: ClaimedJob, rng: random.Random) -> Ending:
        echo = {"echo": {"token": job.token, "attempt": job.attempt}}
        follow_ups = tuple(replace(_job(rng, []), payload=echo) for _ in range(rng.randrange(3)))
        endings: list[Ending] = [DONE, BROKEN, HOPELESS, Released("x"), Cancelled("y")]
        return rng.choice([*endings, Completed(1, follow_ups)])

    async def cancel(self, connection: Connection, rng: random.Random) -> None:
        ids = rng.sample(self.known, min(len(self.known), 5))
        asked_at = _now()
        over = (await ledger.cancel(connection, DEFAULT_TENANT, ids)).cancelled
        self.note(
            cancelled=[
                seen.Cancelled(job_id, asked_at, _now(), was_waiting=True) for job_id in over
            ]
        )

    async def retry(self, connection: Connection, rng: random.Random) -> None:
        ids = rng.sample(self.known, min(len(self.known), 5))
        asked_at = _now()
        await ledger.retry(connection, DEFAULT_TENANT, ids)
        if self.batches and rng.random() < 0.2:
            ids.append(rng.choice(self.batches))
            await batches.retry(connection, DEFAULT_TENANT, ids[-1])
        self.note(retried=[seen.Retried(found, asked_at, _now()) for found in ids])

    async def sweep(self, connection: Connection, rng: random.Random) -> None:
        await ledger.promote_due(connection, 50)
        await ledger.expire(connection, 50)
        key, concurrency, asked_at = rng.choice(["k1", "k2"]), rng.randrange(1, 4), _now()
        await limits.put(connection, DEFAULT_TENANT, key, concurrency)
        self.note(limits=[seen.LimitSet(key, concurrency, asked_at, _now())])
        await limits.audit(connection)
        await batches.finish_due(connection)


async def _effects(connection: Connection) -> list[Effect]:
    """A follow-up bears the attempt whose success created it: the effects of all that succeeded."""
    rows = await connection.fetch("""
        SELECT DISTINCT parent_id, payload #> '{echo,token}' AS token,
            payload #> '{echo,attempt}' AS attempt
        FROM (SELECT parent_id, payload FROM jobs UNION ALL SELECT parent_id, payload FROM history)
            AS created WHERE parent_id IS NOT NULL""")
    return [Effect(row["parent_id"], row["token"], row["attempt"]) for row in rows]


async def test_everything_at_once_keeps_every_promise(desk: Desk) -> None:
    actors = Actors(desk)
    seeds = random.Random(20_26)

    async def act(*verbs: Callable[[Connection, random.Random], Awaitable[None]]) -> None:
        rng = random.Random(seeds.random())
        for _ in range(ROUNDS):
            async with desk.pool.acquire() as connection:
                await rng.choice(verbs)(connection, rng)

    async with desk.pool.acquire() as connection:
        await actors.submit(connection, seeds)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act, actors.submit, actors.work)
            tasks.start_soon(act, actors.work, actors.work)
            tasks.start_soon(act, actors.cancel, actors.retry, actors.sweep)
            tasks.start_soon(act, actors.sweep, actors.work, actors.cancel)
    async with desk.pool.acquire() as connection:
        actors.note(effects=await _effects(connection))
        await audit(connection, actors.log)
        # What is left is cancelled, so that the end of everything is audited as well.
        await ledger.cancel(connection, DEFAULT_TENANT, actors.known)
        await batches.finish_due(connection, limit=10_000)
        left = await collect(connection, actors.log)
    assert not check(left)
    assert {job.state.is_terminal for job in left.jobs} == {True}
    assert {batch.state for batch in left.batches} == {BatchState.FINISHED}
    assert actors.log.effects
