"""Fires what is due: each fire once, its job in the same transaction, announced after the
commit.

Any number of tickers run at once, without a leader: who locks a schedule's row fires it, and the
others pass it over. All of them follow the database's clock.
"""

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from uuid import UUID

import anyio
from anyio.abc import TaskStatus

from jobs import events
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.events import NewEvent
from jobs.kinds import KindRegistry
from jobs.model import Accepted
from jobs.states import JobState
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Connection, Pool
from runtime.sql import load_queries
from schedules import firing, rows
from schedules.cron import Jitter, following_due
from schedules.follow import follow
from schedules.model import FireOutcome, Schedule
from schedules.plan import Decision, Plan, decide, timetable_of
from schedules.store import database_now

QUERIES = load_queries("schedules")
BATCH = 100
# What is due but locked by somebody else is no reason to spin.
PAUSE_MIN_S = 0.02
# A clock that is set back by less than this only makes schedules wait for it.
SET_BACK_MIN = timedelta(minutes=5)

type Announce = Callable[[Mapping[str, Sequence[UUID]]], Awaitable[None]]
type Made = Mapping[tuple[UUID, datetime], Accepted | None]

log = logger("schedules")


@dataclass(frozen=True, slots=True)
class Ticker:
    """What a ticker works with. `now` overrides the database's clock, for tests."""

    pool: Pool
    kinds: KindRegistry
    announce: Announce
    ageing_s: float = DEFAULT_AGEING_S

    async def run(
        self, *, poll_s: float, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Tick for ever: at the next due time, and at least every `poll_s` to see what changed.

        Reports itself as started after its first round, however that went.
        """
        for number in count():
            pause_s = poll_s
            try:
                await self.tick()
                await follow(self.pool)
                pause_s = await self._until_next_due(poll_s)
            except (*UNREACHABLE, TimeoutError) as error:
                log.warning("tick_postponed", error=str(error))
            except Exception:
                # One bad pass must not end all schedules; whatever failed was rolled back.
                log.exception("tick_failed")
            if number == 0:
                task_status.started()
            await anyio.sleep(pause_s)

    async def tick(self, now: datetime | None = None) -> int:
        """Fire everything that is due; answers how many schedules were decided on."""
        decided = await self._set_right(now)
        while fired := await self._fire_batch(now):
            decided += fired
            if fired < BATCH:
                break
        return decided

    async def _fire_batch(self, now: datetime | None) -> int:
        """One batch in one transaction; when that fails, each schedule in one of its own."""
        try:
            return await self._fire(now, BATCH)
        except (*UNREACHABLE, TimeoutError):
            raise
        except Exception:
            # A poisoned schedule may raise anything; it must not hold up the others of its batch.
            log.exception("tick_batch_failed")
        async with self.pool.acquire() as connection:
            moment = await database_now(connection, now)
            ids = await connection.fetch(QUERIES["due_ids"], moment, BATCH)
        for row in ids:
            await self._fire_alone(row["id"], moment, now)
        return len(ids)

    async def _fire_alone(self, schedule_id: UUID, moment: datetime, now: datetime | None) -> None:
        try:
            await self._fire(now, 1, schedule_id)
        except (*UNREACHABLE, TimeoutError):
            raise
        except Exception:
            # See _fire_batch. Put off instead of paused: the cause may lie with us.
            log.exception("schedule_put_off", schedule_id=str(schedule_id))
            async with self.pool.acquire() as connection:
                await connection.execute(QUERIES["put_off"], schedule_id, moment)

    async def _fire(self, now: datetime | None, limit: int, only: UUID | None = None) -> int:
        async with self.pool.acquire() as connection, connection.transaction():
            moment = await database_now(connection, now)
            found = await connection.fetch(QUERIES["claim_due"], moment, limit, only)
            if not found:
                return 0
            how = firing.Acceptance(self.kinds, moment, self.ageing_s)
            ready = await fire_all(connection, [rows.schedule(row) for row in found], how)
        await self.announce(ready)
        return len(found)

    async def _set_right(self, now: datetime | None) -> int:
        """Plan anew what a clock that ran ahead had put off, perhaps by years."""
        async with self.pool.acquire() as connection, connection.transaction():
            moment = await database_now(connection, now)
            ahead = await connection.fetch(QUERIES["claim_set_back"], moment + SET_BACK_MIN, BATCH)
            plans = [_replan(rows.schedule(row), moment) for row in ahead]
            if plans:
                await _advance(connection, plans, moment)
        return len(plans)

    async def _until_next_due(self, poll_s: float) -> float:
        async with self.pool.acquire() as connection:
            due_in_s: float | None = await connection.fetchval(QUERIES["next_due_in_s"], None)
        return poll_s if due_in_s is None else min(poll_s, max(PAUSE_MIN_S, due_in_s))


async def fire_all(
    connection: Connection, schedules: Sequence[Schedule], how: firing.Acceptance
) -> dict[str, list[UUID]]:
    """Decide on schedules whose rows the caller holds; answers the jobs to announce, by pool."""
    unsettled = await _unsettled(connection, schedules)
    plans = [decide(schedule, how.now, unsettled[schedule.id]) for schedule in schedules]
    fires = [(plan.schedule, decision) for plan in plans for decision in plan.decisions]
    fires = await _record(connection, fires, how.now)
    due = [(s, d) for s, d in fires if d.outcome is FireOutcome.ENQUEUED]
    ready = await _enqueue(connection, due, how)
    await _advance(connection, plans, how.now)
    await events.add(connection, [_missed_event(plan) for plan in plans if plan.missed])
    return ready


async def _unsettled(connection: Connection, schedules: Sequence[Schedule]) -> Counter[UUID]:
    """How many jobs of each schedule have not settled, asked of the ledger in this transaction."""
    ids = [schedule.id for schedule in schedules]
    open_jobs = await connection.fetch(QUERIES["open_jobs"], ids)
    jobs = await firing.standing(
        connection, [(row["tenant_id"], row["job_id"]) for row in open_jobs]
    )
    return Counter(
        row["schedule_id"]
        for row in open_jobs
        if (job := jobs[row["job_id"]]) is not None and not job.settled
    )


async def _record(
    connection: Connection, fires: Sequence[tuple[Schedule, Decision]], now: datetime
) -> list[tuple[Schedule, Decision]]:
    """Write the fires; answers those that were not there already."""
    recorded = await connection.fetch(
        QUERIES["record_fires"],
        [schedule.id for schedule, _ in fires],
        [decision.fire_at for _, decision in fires],
        [schedule.tenant_id for schedule, _ in fires],
        [decision.outcome for _, decision in fires],
        [decision.detail for _, decision in fires],
        now,
    )
    known = {(row["schedule_id"], row["fire_at"]) for row in recorded}
    fresh = [(s, d) for s, d in fires if (s.id, d.fire_at) in known]
    for _, decision in fresh:
        metrics.SCHEDULE_FIRES.labels(outcome=decision.outcome).inc()
    return fresh


async def _enqueue(
    connection: Connection, due: Sequence[tuple[Schedule, Decision]], how: firing.Acceptance
) -> dict[str, list[UUID]]:
    """Make the fires' jobs and note on each fire its job, or why there is none."""
    answers = await firing.enqueue_each(connection, [schedule for schedule, _ in due], how)
    await connection.fetch(
        QUERIES["attach_jobs"],
        [schedule.id for schedule, _ in due],
        [decision.fire_at for _, decision in due],
        [answer.id if isinstance(answer, Accepted) else None for answer in answers],
        [_detail(answer) for answer in answers],
        how.now,
    )
    ready: dict[str, list[UUID]] = defaultdict(list)
    for answer in answers:
        if isinstance(answer, Accepted) and answer.state is JobState.QUEUED:
            ready[answer.pool].append(answer.id)
    return ready


def _detail(answer: Accepted | Exception) -> str | None:
    if isinstance(answer, Accepted):
        return firing.DEDUPLICATED if answer.deduplicated else None
    return str(answer)


async def _advance(connection: Connection, plans: Sequence[Plan], now: datetime) -> None:
    await connection.execute(
        QUERIES["advance"],
        [plan.schedule.id for plan in plans],
        [plan.next and plan.next.fire_at for plan in plans],
        [plan.next and plan.next.due_at for plan in plans],
        [plan.decisions[-1].fire_at if plan.decisions else None for plan in plans],
        [plan.anchor_at for plan in plans],
        [plan.schedule.interval_s for plan in plans],
        [plan.schedule.unchanged_runs for plan in plans],
        now,
    )


def _replan(schedule: Schedule, now: datetime) -> Plan:
    """Go on from now, without deciding on anything."""
    anchor_at = min(schedule.anchor_at, now)
    jitter = Jitter(schedule.id, schedule.spec.jitter_s)
    upcoming = following_due(timetable_of(schedule, anchor_at), jitter, now)
    return Plan(replace(schedule, anchor_at=anchor_at), (), upcoming, anchor_at)


def _missed_event(plan: Plan) -> NewEvent:
    schedule, missed = plan.schedule, plan.missed
    return NewEvent(
        tenant_id=schedule.tenant_id,
        type="schedule.missed",
        data={
            "schedule_id": str(schedule.id),
            "name": schedule.spec.name,
            "misfire": schedule.spec.misfire,
            "missed": len(missed),
            "first_at": missed[0].fire_at.isoformat(),
            "last_at": missed[-1].fire_at.isoformat(),
            "truncated": plan.truncated,
            "links": {"schedule": f"/v1/schedules/{schedule.id}"},
        },
    )
