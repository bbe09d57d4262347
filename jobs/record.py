"""Records how attempts ended, a batch at a time, with everything that follows from it."""

import random
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs.aftermath import Aftermath, over_from
from jobs.enqueue import enqueue_follow_ups
from jobs.errors import Cancel, JobsRefused
from jobs.kinds import KindRegistry
from jobs.model import SlotId
from jobs.outcomes import Backoff
from jobs.results import Ended, Recorded
from jobs.rulings import BackOff, Finish, GiveBack, Ruling, bad_result, cancelled, rule
from jobs.states import JobState
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# What one row can do to the statement of a whole batch: bad data, a broken check, too deep.
_BAD_ROW = (
    JobsRefused,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.InterfaceError,
)


async def record(
    connection: Connection,
    slot_id: SlotId,
    ended: Sequence[Ended],
    *,
    kinds: KindRegistry,
    rng: random.Random,
    now: datetime | None = None,
    backoff: Backoff | None = None,
) -> Recorded:
    """Record a batch of endings in one transaction: outcomes, follow-ups, events and callbacks
    owed.

    Call it outside of a transaction: it opens and commits its own, and when the batch fails it goes
    row by row, so that one bad row fails alone (`bad_result`). Inside one it uses savepoints. What
    is no longer held by its token is not written and answered as `stale`.
    """
    if not ended:
        return Recorded()
    book = RulingBook(connection, slot_id, kinds, now)
    usual = backoff or Backoff()
    rulings = [rule(one, kinds.backoff_of(one.job.kind, usual), rng) for one in ended]
    try:
        return await book.write(rulings)
    except _BAD_ROW:
        return _merge([await book.write_alone(ruling) for ruling in rulings])


class RulingBook:
    """Writes rulings for one slot."""

    def __init__(
        self, connection: Connection, slot_id: SlotId, kinds: KindRegistry, now: datetime | None
    ) -> None:
        self._connection = connection
        self._slot_id = slot_id
        self._kinds = kinds
        self._now = now

    async def write_alone(self, ruling: Ruling) -> Recorded:
        """Write one ruling; when its own data is at fault, the job fails for that."""
        try:
            return await self.write([ruling])
        except _BAD_ROW as error:
            return await self.write([bad_result(ruling.job, ruling.waited_s, str(error))])

    async def write(self, rulings: Sequence[Ruling]) -> Recorded:
        """Write all or none."""
        return await atomically(self._connection, lambda: self._write(rulings))

    async def _write(self, rulings: Sequence[Ruling]) -> Recorded:
        aftermath = Aftermath(self._connection, self._slot_id, self._now)
        finishes = [ruling for ruling in rulings if isinstance(ruling, Finish)]
        if any(finish.follow_ups for finish in finishes):
            locked = await self._lock(finishes)
            finishes = [await self._create_follow_ups(finish, aftermath) for finish in locked]
        if len(finishes) < len(rulings):
            finishes += await self._keep(rulings, aftermath)
        stale = await self._finish(finishes, aftermath)
        await aftermath.apply()
        batches = {ruling.job.batch_id for ruling in rulings if ruling.job.batch_id is not None}
        return Recorded(
            stale=stale,
            ready=aftermath.ready_by_pool(),
            settled=tuple(aftermath.settled),
            batches=tuple(sorted(batches.union(aftermath.deltas.batches))),
            has_returned=aftermath.has_returned,
        )

    async def _keep(self, rulings: Sequence[Ruling], aftermath: Aftermath) -> list[Finish]:
        """Let jobs live that are to run again; answers those that may not.

        Those are asked to be cancelled, or stale, which the fence around their end tells.
        """
        waits = [ruling for ruling in rulings if isinstance(ruling, BackOff)]
        gifts = [ruling for ruling in rulings if isinstance(ruling, GiveBack)]
        kept = await self._back_off(waits, aftermath) | await self._give_back(gifts, aftermath)
        rest: list[Ruling] = [*waits, *gifts]
        return [
            cancelled(ruling.job, ruling.waited_s) for ruling in rest if ruling.job.id not in kept
        ]

    async def _lock(self, finishes: Sequence[Finish]) -> list[Finish]:
        """Lock what is still held, jobs before keys; whose cancellation was asked is cancelled."""
        rows = await self._connection.fetch(
            QUERIES["lock_held_jobs"],
            [finish.job.id for finish in finishes],
            [finish.job.token for finish in finishes],
        )
        asked = {row["id"]: row["cancel_requested_at"] is not None for row in rows}
        return [
            cancelled(finish.job, finish.waited_s)
            if finish.follow_ups and asked.get(finish.job.id, True)
            else finish
            for finish in finishes
        ]

    async def _create_follow_ups(self, finish: Finish, aftermath: Aftermath) -> Finish:
        if finish.follow_ups:
            try:
                await enqueue_follow_ups(
                    self._connection,
                    finish.job,
                    finish.follow_ups,
                    kinds=self._kinds,
                    now=self._now,
                    aftermath=aftermath,
                )
            except Cancel:
                return cancelled(finish.job, finish.waited_s)
        return finish

    async def _finish(self, finishes: Sequence[Finish], aftermath: Aftermath) -> frozenset[UUID]:
        """End jobs; answers those that were no longer held."""
        if not finishes:
            return frozenset()
        ids = [finish.job.id for finish in finishes]
        rows = await self._connection.fetch(
            QUERIES["finish_held"],
            self._slot_id,
            self._now,
            ids,
            [finish.job.token for finish in finishes],
            _unless_all(JobState.SUCCEEDED, [finish.state for finish in finishes]),
            [finish.waited_s for finish in finishes],
            _unless_all(None, [finish.result for finish in finishes]),
            _unless_all(None, [finish.error for finish in finishes]),
        )
        moved, tied = rows[0]["moved"], [row for row in rows if row["id"] is not None]
        aftermath.release(rows[0])
        if moved is None and not tied:
            aftermath.settled += ids
            return frozenset()
        found = set(ids) if moved is None else set(moved)
        states = {finish.job.id: finish.state for finish in finishes}
        aftermath.add(over_from(row, states[row["id"]], held_permit=False) for row in tied)
        aftermath.settled += found - {row["id"] for row in tied}
        return frozenset(ids) - found

    async def _back_off(self, waits: Sequence[BackOff], aftermath: Aftermath) -> set[UUID]:
        if not waits:
            return set()
        rows = await self._connection.fetch(
            QUERIES["back_off"],
            self._slot_id,
            self._now,
            [wait.job.id for wait in waits],
            [wait.job.token for wait in waits],
            [wait.waited_s for wait in waits],
            [wait.problem.as_json() for wait in waits],
            [wait.after_s for wait in waits],
        )
        for row in rows:
            aftermath.put_off(row)
        return {row["id"] for row in rows}

    async def _give_back(self, gifts: Sequence[GiveBack], aftermath: Aftermath) -> set[UUID]:
        """Queue given-back jobs again, the lost ones among them as suspects."""
        kept: set[UUID] = set()
        for outcome in ("released", "lost"):
            own = [gift for gift in gifts if gift.outcome == outcome]
            if not own:
                continue
            rows = await self._connection.fetch(
                QUERIES["give_back"],
                self._slot_id,
                self._now,
                [gift.job.id for gift in own],
                [gift.job.token for gift in own],
                [gift.waited_s for gift in own],
                outcome,
                [gift.problem.as_json() for gift in own],
            )
            for row in rows:
                aftermath.ready[row["pool"]].append(row["id"])
            kept.update(row["id"] for row in rows)
        return kept


def _unless_all[T](default: T, values: list[T]) -> list[T]:
    """Nothing instead of a column of defaults: encoding it costs more than finding out."""
    return values if any(value is not default for value in values) else []


def _merge(parts: Sequence[Recorded]) -> Recorded:
    ready: dict[str, tuple[UUID, ...]] = {}
    for part in parts:
        for pool, ids in part.ready.items():
            ready[pool] = (*ready.get(pool, ()), *ids)
    return Recorded(
        stale=frozenset[UUID]().union(*(part.stale for part in parts)),
        ready=ready,
        settled=tuple(job_id for part in parts for job_id in part.settled),
        batches=tuple(sorted({batch_id for part in parts for batch_id in part.batches})),
        has_returned=any(part.has_returned for part in parts),
    )
