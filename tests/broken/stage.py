"""A stage for forced interleavings: slots and clients that note what they see, step by step.

No actor sleeps; who must wait for another is seen to wait by the database before the next step.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

import anyio
from asyncpg.transaction import Transaction

from chaos.checker import Violation, check
from chaos.collect import collect
from chaos.history import AcceptedJob, ClientLog, Effect, Run, Unanswered
from jobs import ledger, slots
from jobs.errors import StaleToken
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import DEFAULT_TENANT, ClaimedJob, NewJob, SlotId
from jobs.outcomes import Completed
from jobs.results import Ended
from runtime.postgres import UNREACHABLE, Connection, Pool

KIND = POOL = "probe"
_BLOCKED = "SELECT cardinality(pg_blocking_pids($1)) > 0"
_WAIT_S = 20.0


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Stage:
    """The ledger, and the log of everybody who uses it."""

    pool: Pool
    log: ClientLog = field(default_factory=ClientLog)
    kinds: KindRegistry = field(default_factory=load_kinds)
    effects: list[Effect] = field(default_factory=list)

    def note(self, **seen: Sequence[object]) -> None:
        added = {name: (*getattr(self.log, name), *items) for name, items in seen.items()}
        self.log = replace(self.log, **added)  # type: ignore[arg-type]  # fields by name

    async def enqueue(self, connection: Connection, job: NewJob) -> AcceptedJob:
        """Take a job in, in the caller's transaction; who answers a client notes it."""
        [accepted] = await ledger.enqueue(connection, DEFAULT_TENANT, [job], kinds=self.kinds)
        return AcceptedJob(accepted.id, now())

    async def submit(self, job: NewJob) -> None:
        """As the API does: commit, then answer."""
        async with self.pool.acquire() as connection:
            self.answer(await self.enqueue(connection, job))

    async def slot(self) -> SlotId:
        async with self.pool.acquire() as connection:
            return await slots.register(
                connection,
                supervisor_id=uuid4(),
                pool=POOL,
                number=0,
                host="stage",
                pid=1,
                cores=[0],
                kinds=[KIND],
            )

    async def claim(self, slot: SlotId) -> list[ClaimedJob]:
        """Claim and begin to run."""
        async with self.pool.acquire() as connection:
            jobs = await ledger.claim(connection, slot, POOL, [KIND], 10)
        self.note(runs=[Run(job.id, job.token, job.attempt, slot, now()) for job in jobs])
        return jobs

    async def succeed(self, job: ClaimedJob) -> None:
        """The handler returns; what it did counts when the ledger takes the success."""
        if await self.end(job):
            self.effects.append(_effect(job))

    async def end(self, job: ClaimedJob) -> bool:
        """The handler returns; False when the ledger says that it no longer held the job."""
        ended_at = now()
        runs = self.log.runs
        self.log = replace(
            self.log,
            runs=tuple(replace(r, ended_at=ended_at) if r.token == job.token else r for r in runs),
        )
        async with self.pool.acquire() as connection:
            done = await ledger.record(
                connection,
                job.slot_id,
                [Ended(job, Completed(None))],
                kinds=self.kinds,
                rng=random.Random(1),
            )
        return not done.stale

    async def write_fenced(self, job: ClaimedJob) -> None:
        """Write under the attempt's fence, unless that refuses."""
        async with self.pool.acquire() as connection, connection.transaction():
            try:
                await ledger.assert_held(connection, job.id, job.token)
            except StaleToken:
                return
            self.effects.append(_effect(job))

    async def die(self, slot: SlotId) -> None:
        """The slot is declared dead, and its jobs are queued again."""
        async with self.pool.acquire() as connection:
            await slots.end(connection, slot, "its process was stopped")
        await self.sweep()

    async def sweep(self) -> None:
        """Rescue whatever slot a sweeper finds dead."""
        async with self.pool.acquire() as connection:
            found = await slots.ended_holding(connection)
        for slot in found:
            await slots.rescue(self.pool, slot, started=(), kinds=self.kinds)

    async def submit_side_by_side(self, first: NewJob, second: NewJob) -> None:
        """The second submit begins while the first is not committed, and waits for it."""
        async with self.pool.acquire() as one, self.pool.acquire() as other:
            pid: int = await other.fetchval("SELECT pg_backend_pid()")
            transaction = one.transaction()
            await transaction.start()
            accepted = await self.enqueue(one, first)
            with anyio.fail_after(_WAIT_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._submit_on, other, second)
                    await self._wait_blocked(pid)
                    await transaction.commit()
                    self.answer(accepted)

    async def _submit_on(self, connection: Connection, job: NewJob) -> None:
        self.answer(await self.enqueue(connection, job))

    async def _wait_blocked(self, pid: int) -> None:
        """Return once the backend waits for another one's lock."""
        async with self.pool.acquire() as watcher:
            while not await watcher.fetchval(_BLOCKED, pid):
                await anyio.lowlevel.checkpoint()

    async def submit_while_postgres_dies(self, job: NewJob) -> None:
        """The backend is killed when all is written and nothing is committed."""
        try:
            async with self.pool.acquire() as killer, self.pool.acquire() as connection:
                pid: int = await connection.fetchval("SELECT pg_backend_pid()")

                async def commit(transaction: Transaction) -> None:
                    await killer.execute("SELECT pg_terminate_backend($1, 5000)", pid)
                    await transaction.commit()

                await self.accept(connection, job, commit)
        except UNREACHABLE:
            self.note(unanswered=[Unanswered(now())])

    async def accept(
        self, connection: Connection, job: NewJob, commit: Callable[[Transaction], Awaitable[None]]
    ) -> None:
        """Commit, then answer: the order that makes a 202 honest."""
        transaction = connection.transaction()
        await transaction.start()
        accepted = await self.enqueue(connection, job)
        await commit(transaction)
        self.answer(accepted)

    def answer(self, accepted: AcceptedJob) -> None:
        """The client reads its 202."""
        self.note(accepted=[replace(accepted, at=now())])

    async def judge(self) -> list[Violation]:
        """What the shared checker says of all this."""
        self.note(effects=self.effects)
        async with self.pool.acquire() as connection:
            return check(await collect(connection, self.log))


def _effect(job: ClaimedJob) -> Effect:
    return Effect(job.id, job.token, job.attempt)
