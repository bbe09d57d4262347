"""Rows of the schedules' tables as records. The only place that knows the columns' names."""

from asyncpg import Record

from jobs.model import TenantId
from jobs.states import JobState
from schedules.model import (
    Adaptive,
    Cause,
    Cron,
    Every,
    Fire,
    FireOutcome,
    Misfire,
    Overlap,
    Pause,
    Schedule,
    ScheduleSpec,
    Timing,
)
from schedules.spec import job_from_json


def schedule(row: Record) -> Schedule:
    """A row of `schedules`."""
    return Schedule(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        spec=_spec(row),
        version=row["version"],
        pause=_pause(row),
        next_at=row["next_at"],
        due_at=row["due_at"],
        interval_s=row["interval_s"],
        unchanged_runs=row["unchanged_runs"],
        anchor_at=row["anchor_at"],
        last_fire_at=row["last_fire_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _spec(row: Record) -> ScheduleSpec:
    return ScheduleSpec(
        name=row["name"],
        job=job_from_json(row["job"]),
        timing=_timing(row),
        timezone=row["timezone"],
        jitter_s=row["jitter_s"],
        misfire=Misfire(row["misfire"]),
        overlap=Overlap(row["overlap"]),
    )


def _timing(row: Record) -> Timing:
    if row["cron"] is not None:
        return Cron(row["cron"])
    if row["every_s"] is not None:
        return Every(row["every_s"])
    return Adaptive(row["adaptive_min_s"], row["adaptive_max_s"])


def _pause(row: Record) -> Pause | None:
    if row["paused_at"] is None:
        return None
    return Pause(row["paused_at"], row["paused_by"], row["paused_reason"])


def fire(row: Record) -> Fire:
    """A row of `schedule_fires`."""
    state = row["job_state"]
    return Fire(
        schedule_id=row["schedule_id"],
        fire_at=row["fire_at"],
        decided_at=row["decided_at"],
        cause=Cause(row["cause"]),
        actor=row["actor"],
        outcome=FireOutcome(row["outcome"]),
        detail=row["detail"],
        job_id=row["job_id"],
        job_state=None if state is None else JobState(state),
        settled_at=row["settled_at"],
    )
