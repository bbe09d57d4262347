"""Takes the jobs of a dead slot back. A row that cannot be taken back is left held, for the next
sweep to try again; it keeps none of the others.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs.errors import JobsRefused, StateConflict
from jobs.kinds import KindRegistry
from jobs.model import ClaimedJob, SlotId, TenantId, Token
from jobs.outcomes import Backoff, Ending
from jobs.record import RulingBook
from jobs.results import Ended, Recorded, Rescued
from jobs.rulings import Finish, Ruling, Suspicion, cancelled, lost, rule
from jobs.states import JobState
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Connection, Pool
from runtime.sql import load_queries

QUERIES = load_queries("jobs", "slots")
BATCH = 200
# What one row can raise: its own data, a broken invariant, a lock that somebody does not let go of.
_POISON = (JobsRefused, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TypeError)

log = logger("rescue")


@dataclass(frozen=True, slots=True)
class _Loss:
    """What is known about the end of a slot."""

    slot_id: SlotId
    reason: str
    started: Collection[UUID] | None
    endings: Mapping[UUID, tuple[Token, Ending]]
    backoff: Backoff
    kinds: KindRegistry

    def ruling(self, row: asyncpg.Record) -> Ruling:
        job = _claimed(row, self.slot_id)
        token, ending = self.endings.get(job.id, (None, None))
        if row["is_cancelled"]:
            return cancelled(job, 0.0)
        if ending is not None and token == job.token:
            backoff = self.kinds.backoff_of(job.kind, self.backoff)
            return rule(Ended(job, ending), backoff, random.Random())  # noqa: S311 - jitter
        return lost(job, self._suspicion(job.id), f"slot ended: {self.reason}")

    def _suspicion(self, job_id: UUID) -> Suspicion:
        if self.started is None:
            return Suspicion.VAGUE
        return Suspicion.STRONG if job_id in self.started else Suspicion.NONE


async def rescue(
    postgres: Pool,
    slot_id: SlotId,
    *,
    started: Collection[UUID] | None,
    kinds: KindRegistry,
    endings: Mapping[UUID, tuple[Token, Ending]] | None = None,
    backoff: Backoff | None = None,
    now: datetime | None = None,
) -> Rescued:
    """Take the jobs of a dead slot back.

    Only `started` jobs are suspects: each loses one life. The second loss lets a job run only
    alone, the third fails it as `worker_lost`. None: nobody saw which had started, nor that one of
    them ended the slot; then only a job pays that was interrupted often before. `endings` are what
    killing the slot decided for single attempts. Idempotent. Raises StateConflict while the slot
    lives.
    """
    tally = _Tally()
    async with postgres.acquire() as connection:
        reason = await connection.fetchval(QUERIES["slot_end"], slot_id)
        if reason is None:
            message = f"slot {slot_id} lives: end it first, so that it can claim no more"
            raise StateConflict(message)
        loss = _Loss(slot_id, reason, started, endings or {}, backoff or Backoff(), kinds)
        book = RulingBook(connection, slot_id, kinds, now)
        after = UUID(int=0)
        while rows := await _held(connection, slot_id, after):
            await _take_back(book, loss, rows, tally)
            after = rows[-1]["job_id"]
    return tally.total()


async def holds(connection: Connection, slot_id: SlotId) -> list[ClaimedJob]:
    """What a slot holds, without payloads; ended or not."""
    found: list[ClaimedJob] = []
    while rows := await _held(connection, slot_id, found[-1].id if found else UUID(int=0)):
        found += [_claimed(row, slot_id) for row in rows]
    return found


async def _held(connection: Connection, slot_id: SlotId, after: UUID) -> Sequence[asyncpg.Record]:
    return await connection.fetch(QUERIES["held_by_slot"], slot_id, after, BATCH)


async def _take_back(
    book: RulingBook, loss: _Loss, rows: Sequence[asyncpg.Record], tally: "_Tally"
) -> None:
    """All in one transaction; when that fails, each row in one of its own."""
    try:
        rulings = [loss.ruling(row) for row in rows]
        tally.add(rulings, await book.write(rulings))
    except UNREACHABLE:
        raise
    except _POISON as error:
        if len(rows) == 1:
            log.exception("rescue_failed", job_id=str(rows[0]["job_id"]), exc_info=error)
            return
        for row in rows:
            await _take_back(book, loss, [row], tally)


def _claimed(row: asyncpg.Record, slot_id: SlotId) -> ClaimedJob:
    return ClaimedJob(
        id=row["job_id"],
        tenant_id=TenantId(row["tenant_id"]),
        kind=row["kind"],
        pool=row["pool"],
        payload={},
        token=Token(row["token"]),
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        failures=row["failures"],
        losses=row["losses"],
        timeout_s=None,
        claimed_at=row["claimed_at"],
        batch_id=row["batch_id"],
        parent_id=row["parent_id"],
        lineage=tuple(row["lineage"]),
        slot_id=slot_id,
    )


@dataclass(slots=True)
class _Tally:
    """Adds up what became of the jobs."""

    requeued: list[UUID] = field(default_factory=list)
    failed: list[UUID] = field(default_factory=list)
    cancelled: list[UUID] = field(default_factory=list)
    ready: dict[str, tuple[UUID, ...]] = field(default_factory=dict)
    batches: set[UUID] = field(default_factory=set)

    def add(self, rulings: Sequence[Ruling], recorded: Recorded) -> None:
        self.batches.update(recorded.batches)
        for pool, ids in recorded.ready.items():
            self.ready[pool] = (*self.ready.get(pool, ()), *ids)
        for ruling in rulings:
            if ruling.job.id not in recorded.stale:
                self._place(ruling).append(ruling.job.id)

    def _place(self, ruling: Ruling) -> list[UUID]:
        if not isinstance(ruling, Finish):
            return self.requeued
        return self.cancelled if ruling.state is JobState.CANCELLED else self.failed

    def total(self) -> Rescued:
        return Rescued(
            tuple(self.requeued),
            tuple(self.failed),
            tuple(self.cancelled),
            self.ready,
            tuple(sorted(self.batches)),
        )
