"""What users do with schedules: make, read, change, pause and trigger them. One function a verb.

A verb that writes is called inside the caller's transaction, which it never commits. Times are the
database's unless `now` is given. Firing by time is schedules/ticker.py's.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs.enqueue import DEFAULT_AGEING_S
from jobs.kinds import KindRegistry
from jobs.model import Accepted, TenantId
from runtime.ids import uuid7
from runtime.postgres import Connection
from runtime.sql import load_queries
from schedules import firing, rows
from schedules.cron import Due, Jitter, Timetable, first_fires, following_due, timetable
from schedules.errors import (
    ScheduleChanged,
    ScheduleNameTaken,
    ScheduleNotFound,
    ScheduleRefused,
)
from schedules.model import Adaptive, Cron, Every, Fire, Schedule, ScheduleSpec
from schedules.plan import timetable_of
from schedules.spec import check, job_as_json

QUERIES = load_queries("schedules")
PREVIEW_MAX = 100


async def create(
    connection: Connection, tenant_id: TenantId, spec: ScheduleSpec, *, now: datetime | None = None
) -> Schedule:
    """Keep a new schedule; its first fire is the first of its timetable after now.

    Raises ScheduleRefused or ScheduleNameTaken.
    """
    check(spec)
    moment = await database_now(connection, now)
    schedule_id = uuid7()
    interval_s = _first_interval(spec)
    table = timetable(spec.timing, spec.timezone, moment, interval_s)
    due = _first(table, schedule_id, spec, moment)
    row = await connection.fetchrow(
        QUERIES["create_schedule"],
        schedule_id,
        tenant_id,
        *_spec_columns(spec),
        moment,
        interval_s,
        due.fire_at,
        due.due_at,
    )
    if row is None:
        raise ScheduleNameTaken(spec.name)
    return rows.schedule(row)


async def get(connection: Connection, tenant_id: TenantId, schedule_id: UUID) -> Schedule:
    """Read one schedule. Raises ScheduleNotFound."""
    row = await connection.fetchrow(QUERIES["get_schedule"], tenant_id, schedule_id)
    return rows.schedule(_found(row, schedule_id))


async def list_schedules(
    connection: Connection, tenant_id: TenantId, *, after: UUID | None = None, limit: int = 100
) -> list[Schedule]:
    """Read the tenant's schedules in the order they were made, those after the id `after`."""
    found = await connection.fetch(QUERIES["list_schedules"], tenant_id, after, limit)
    return [rows.schedule(row) for row in found]


async def update(
    connection: Connection,
    tenant_id: TenantId,
    schedule_id: UUID,
    spec: ScheduleSpec,
    *,
    version: int | None = None,
    now: datetime | None = None,
) -> Schedule:
    """Replace what the user asked for; a new timing or zone is counted from now.

    With `version`, only if the schedule still has it. Raises ScheduleNotFound, ScheduleRefused,
    ScheduleNameTaken or ScheduleChanged.
    """
    check(spec)
    moment = await database_now(connection, now)
    old = await _lock(connection, tenant_id, schedule_id)
    if version is not None and version != old.version:
        raise ScheduleChanged(old.version)
    kept = (old.spec.timing, old.spec.timezone) == (spec.timing, spec.timezone)
    anchor_at = old.anchor_at if kept else moment
    interval_s = old.interval_s if kept else _first_interval(spec)
    table = timetable(spec.timing, spec.timezone, anchor_at, interval_s)
    due = None if old.pause else _first(table, schedule_id, spec, moment)
    try:
        async with connection.transaction():
            row = await connection.fetchrow(
                QUERIES["update_schedule"],
                schedule_id,
                tenant_id,
                *_spec_columns(spec),
                anchor_at,
                interval_s,
                old.unchanged_runs if kept else 0,
                due and due.fire_at,
                due and due.due_at,
                moment,
            )
    except asyncpg.UniqueViolationError:
        raise ScheduleNameTaken(spec.name) from None
    return rows.schedule(_found(row, schedule_id))


async def delete(connection: Connection, tenant_id: TenantId, schedule_id: UUID) -> None:
    """Remove the schedule and its list of fires; jobs that it made go on. Raises
    ScheduleNotFound.
    """
    row = await connection.fetchrow(QUERIES["delete_schedule"], tenant_id, schedule_id)
    _found(row, schedule_id)


async def pause(
    connection: Connection,
    tenant_id: TenantId,
    schedule_id: UUID,
    *,
    actor: str,
    reason: str = "",
    now: datetime | None = None,
) -> Schedule:
    """Stop firing by time until `resume`; idempotent, the first pause is the one that is told."""
    row = await connection.fetchrow(
        QUERIES["pause_schedule"], tenant_id, schedule_id, actor, reason, now
    )
    return rows.schedule(_found(row, schedule_id))


async def resume(
    connection: Connection, tenant_id: TenantId, schedule_id: UUID, *, now: datetime | None = None
) -> Schedule:
    """Fire by time again, from the next time of the timetable; what the pause left out is not
    missed.
    """
    moment = await database_now(connection, now)
    schedule = await _lock(connection, tenant_id, schedule_id)
    if schedule.pause is None:
        return schedule
    due = _first(timetable_of(schedule), schedule.id, schedule.spec, moment)
    row = await connection.fetchrow(
        QUERIES["resume_schedule"], schedule_id, due.fire_at, due.due_at, moment
    )
    return rows.schedule(_found(row, schedule_id))


async def trigger(
    connection: Connection,
    tenant_id: TenantId,
    schedule_id: UUID,
    *,
    kinds: KindRegistry,
    actor: str,
    ageing_s: float = DEFAULT_AGEING_S,
    now: datetime | None = None,
) -> tuple[Fire, Accepted]:
    """Fire now, paused or not, besides the timetable; announce the job after the commit.

    Raises ScheduleNotFound, and what jobs.ledger.enqueue raises.
    """
    moment = await database_now(connection, now)
    schedule = await _lock(connection, tenant_id, schedule_id)
    row = await connection.fetchrow(
        QUERIES["record_manual_fire"], schedule_id, tenant_id, moment, actor
    )
    fire_at = _found(row, schedule_id)["fire_at"]
    how = firing.Acceptance(kinds, moment, ageing_s)
    job = firing.job_of(schedule)
    (accepted,) = await firing.enqueue(connection, tenant_id, [job], how)
    return await _attach(connection, schedule_id, fire_at, accepted), accepted


async def preview(
    connection: Connection,
    tenant_id: TenantId,
    schedule_id: UUID,
    count: int,
    *,
    now: datetime | None = None,
) -> list[Due]:
    """The next fires with their jitter, at most PREVIEW_MAX; of a paused one, as if resumed now.

    Those of an adaptive schedule suppose that its interval stays as it is.
    """
    schedule = await get(connection, tenant_id, schedule_id)
    return preview_of(schedule, count, await database_now(connection, now))


def preview_of(schedule: Schedule, count: int, after: datetime) -> list[Due]:
    """The next fires of a schedule later than `after`."""
    fires = first_fires(timetable_of(schedule), after, min(count, PREVIEW_MAX) + 1)
    jitter = Jitter(schedule.id, schedule.spec.jitter_s)
    return jitter.spread(fires)


async def runs(
    connection: Connection,
    tenant_id: TenantId,
    schedule_id: UUID,
    *,
    before: datetime | None = None,
    limit: int = 100,
) -> list[Fire]:
    """Past fires, newest first, those before the fire time `before`. Raises ScheduleNotFound."""
    await get(connection, tenant_id, schedule_id)
    found = await connection.fetch(QUERIES["list_fires"], schedule_id, before, limit)
    return [rows.fire(row) for row in found]


async def database_now(connection: Connection, now: datetime | None = None) -> datetime:
    """The database's clock, the only one that schedules follow; `now` when a test owns the
    clock.
    """
    moment: datetime = await connection.fetchval(QUERIES["database_now"], now)
    return moment


async def _attach(
    connection: Connection, schedule_id: UUID, fire_at: datetime, accepted: Accepted
) -> Fire:
    detail = firing.DEDUPLICATED if accepted.deduplicated else None
    columns = ([schedule_id], [fire_at], [accepted.id], [detail])
    row = await connection.fetchrow(QUERIES["attach_jobs"], *columns, fire_at)
    return rows.fire(_found(row, schedule_id))


async def _lock(connection: Connection, tenant_id: TenantId, schedule_id: UUID) -> Schedule:
    row = await connection.fetchrow(QUERIES["lock_schedule"], tenant_id, schedule_id)
    return rows.schedule(_found(row, schedule_id))


def _first(table: Timetable, schedule_id: UUID, spec: ScheduleSpec, after: datetime) -> Due:
    due = following_due(table, Jitter(schedule_id, spec.jitter_s), after)
    if due is None:
        raise ScheduleRefused("/cron", "never fires within fifty years")
    return due


def _first_interval(spec: ScheduleSpec) -> float | None:
    return spec.timing.min_s if isinstance(spec.timing, Adaptive) else None


def _spec_columns(spec: ScheduleSpec) -> Sequence[object]:
    timing = spec.timing
    return (
        spec.name,
        job_as_json(spec.job),
        timing.expression if isinstance(timing, Cron) else None,
        timing.every_s if isinstance(timing, Every) else None,
        timing.min_s if isinstance(timing, Adaptive) else None,
        timing.max_s if isinstance(timing, Adaptive) else None,
        spec.timezone,
        spec.jitter_s,
        spec.misfire,
        spec.overlap,
    )


def _found(row: asyncpg.Record | None, schedule_id: UUID) -> asyncpg.Record:
    if row is None:
        raise ScheduleNotFound(schedule_id)
    return row
