"""Follows the jobs that fires made: keeps how they ended, and adapts the interval of recrawls."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from asyncpg import Record

from jobs.model import Job, TenantId
from jobs.states import JobState
from runtime.postgres import Connection, Pool
from runtime.sql import load_queries
from schedules import firing, rows
from schedules.cron import Due, Jitter
from schedules.model import Adaptive, Schedule
from schedules.policy import Pace, adapt, observe
from schedules.store import database_now

QUERIES = load_queries("schedules")
BATCH = 200


@dataclass(frozen=True, slots=True)
class _OpenFire:
    schedule_id: UUID
    fire_at: datetime
    tenant_id: TenantId
    job_id: UUID


async def follow(pool: Pool, now: datetime | None = None) -> int:
    """Look at the jobs that are to be looked at again; answers how many of their fires were
    closed.
    """
    closed = 0
    while True:
        async with pool.acquire() as connection, connection.transaction():
            moment = await database_now(connection, now)
            seen, settled = await _look(connection, moment)
        closed += settled
        if seen < BATCH:
            return closed


async def _look(connection: Connection, now: datetime) -> tuple[int, int]:
    fires = [
        _open_fire(row) for row in await connection.fetch(QUERIES["claim_open_fires"], now, BATCH)
    ]
    if not fires:
        return 0, 0
    jobs = await firing.standing(connection, [(fire.tenant_id, fire.job_id) for fire in fires])
    # A job that retention dropped had settled long before; how, nobody knows any more.
    settled = [fire for fire in fires if (job := jobs[fire.job_id]) is None or job.settled]
    waiting = [fire for fire in fires if fire not in settled]
    await _look_again(connection, waiting, now)
    await _close(connection, settled, jobs, now)
    await _adapt(connection, settled, jobs, now)
    return len(fires), len(settled)


async def _look_again(connection: Connection, fires: Sequence[_OpenFire], now: datetime) -> None:
    ids = [fire.schedule_id for fire in fires]
    await connection.execute(QUERIES["look_again"], ids, [fire.fire_at for fire in fires], now)


async def _close(
    connection: Connection,
    fires: Sequence[_OpenFire],
    jobs: dict[UUID, Job | None],
    now: datetime,
) -> None:
    states = [job.state if (job := jobs[fire.job_id]) else None for fire in fires]
    ids = [fire.schedule_id for fire in fires]
    await connection.execute(
        QUERIES["close_fires"], ids, [fire.fire_at for fire in fires], states, now
    )


async def _adapt(
    connection: Connection,
    fires: Sequence[_OpenFire],
    jobs: dict[UUID, Job | None],
    now: datetime,
) -> None:
    """Take in what the settled jobs of adaptive schedules saw, oldest first."""
    found = await connection.fetch(QUERIES["get_adaptive"], [fire.schedule_id for fire in fires])
    adaptive = {row["id"]: rows.schedule(row) for row in found}
    paces = {id_: Pace(s.interval_s or 0.0, s.unchanged_runs) for id_, s in adaptive.items()}
    for fire in sorted(fires, key=lambda fire: fire.fire_at):
        schedule, job = adaptive.get(fire.schedule_id), jobs[fire.job_id]
        if schedule and job and isinstance(schedule.spec.timing, Adaptive):
            seen = observe(job.result) if job.state is JobState.SUCCEEDED else None
            paces[schedule.id] = adapt(paces[schedule.id], schedule.spec.timing, seen)
    await _set_pace(connection, list(adaptive.values()), paces, now)


async def _set_pace(
    connection: Connection, schedules: Sequence[Schedule], paces: dict[UUID, Pace], now: datetime
) -> None:
    upcoming = [_next_fire(schedule, paces[schedule.id], now) for schedule in schedules]
    await connection.execute(
        QUERIES["advance"],
        [schedule.id for schedule in schedules],
        [due and due.fire_at for due in upcoming],
        [due and due.due_at for due in upcoming],
        [None for _ in schedules],
        [schedule.anchor_at for schedule in schedules],
        [paces[schedule.id].interval_s for schedule in schedules],
        [paces[schedule.id].unchanged_runs for schedule in schedules],
        now,
    )


def _next_fire(schedule: Schedule, pace: Pace, now: datetime) -> Due | None:
    """An interval after the last fire, but never in the past; nothing while paused."""
    if schedule.due_at is None:
        return None
    interval = timedelta(seconds=pace.interval_s)
    fire_at = max(now, schedule.anchor_at + interval)
    return Jitter(schedule.id, schedule.spec.jitter_s).due(fire_at, fire_at + interval)


def _open_fire(row: Record) -> _OpenFire:
    return _OpenFire(row["schedule_id"], row["fire_at"], row["tenant_id"], row["job_id"])
