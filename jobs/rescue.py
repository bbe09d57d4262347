"""Takes the jobs of a dead slot back, each in a transaction of its own, so that none can wedge the
rest.
"""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs.errors import StateConflict
from jobs.kinds import KindRegistry
from jobs.model import ClaimedJob, SlotId, TenantId, Token
from jobs.outcomes import Backoff, Ending
from jobs.record import RulingBook
from jobs.results import Ended, Recorded, Rescued
from jobs.rulings import Finish, Ruling, cancelled, lost, rule
from jobs.states import JobState
from runtime.postgres import Pool
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


async def rescue(
    postgres: Pool,
    slot_id: SlotId,
    *,
    started: Collection[UUID] | None,
    kinds: KindRegistry,
    endings: Mapping[UUID, tuple[Token, Ending]] | None = None,
    now: datetime | None = None,
) -> Rescued:
    """Take the jobs of a dead slot back.

    Only `started` jobs (None: all) are suspects: each loses one life. The second loss lets a job
    run only alone, the third fails it as `worker_lost`. `endings` are what killing the slot decided
    for single attempts. Idempotent. Raises StateConflict while the slot lives.
    """
    async with postgres.acquire() as connection:
        if not await connection.fetchval(QUERIES["slot_ended"], slot_id):
            message = f"slot {slot_id} lives: end it first, so that it can claim no more"
            raise StateConflict(message)
        reason = await connection.fetchval(QUERIES["slot_end_reason"], slot_id)
        rows = await connection.fetch(QUERIES["held_by_slot"], slot_id)
        tally = _Tally()
        for row in rows:
            job = _claimed(row, slot_id)
            ruling = _rule(row, job, started, endings or {}, reason=reason)
            book = RulingBook(connection, slot_id, kinds, now)
            tally.add(ruling, await book.write_alone(ruling), is_cancelled=row["is_cancelled"])
    return tally.total()


def _rule(
    row: asyncpg.Record,
    job: ClaimedJob,
    started: Collection[UUID] | None,
    endings: Mapping[UUID, tuple[Token, Ending]],
    *,
    reason: str,
) -> Ruling:
    token, ending = endings.get(job.id, (None, None))
    if row["is_cancelled"]:
        return cancelled(job, 0.0)
    if ending is not None and token == job.token:
        return rule(Ended(job, ending), Backoff(), random.Random())  # noqa: S311 - jitter
    is_suspect = started is None or job.id in started
    return lost(job, is_suspect=is_suspect, reason=f"slot ended: {reason}")


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

    def add(self, ruling: Ruling, recorded: Recorded, *, is_cancelled: bool) -> None:
        if ruling.job.id in recorded.stale:
            return
        self.batches.update(recorded.batches)
        for pool, ids in recorded.ready.items():
            self.ready[pool] = (*self.ready.get(pool, ()), *ids)
        if not isinstance(ruling, Finish):
            self.requeued.append(ruling.job.id)
        elif is_cancelled or ruling.state is JobState.CANCELLED:
            self.cancelled.append(ruling.job.id)
        else:
            self.failed.append(ruling.job.id)

    def total(self) -> Rescued:
        return Rescued(
            tuple(self.requeued),
            tuple(self.failed),
            tuple(self.cancelled),
            self.ready,
            tuple(sorted(self.batches)),
        )
