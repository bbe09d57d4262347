"""What clients see of schedules and their fires."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict

from api.views import AnyObject, View
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
    Schedule,
    Timing,
)
from schedules.spec import job_as_json


class AdaptiveView(View):
    """Bounds of an adaptive period, in seconds."""

    min_s: float
    max_s: float


class ScheduleView(View):
    """A schedule. `next_fire_at` is its next time by the timetable, `due_at` the same with its
    jitter.
    """

    id: UUID
    name: str
    job: AnyObject
    cron: str | None
    every_s: float | None
    adaptive: AdaptiveView | None
    interval_s: float | None
    timezone: str
    jitter_s: float
    misfire: Misfire
    overlap: Overlap
    next_fire_at: datetime | None
    due_at: datetime | None
    last_fire_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]


class FireView(View):
    """One fire, what it led to, and how its job ended."""

    model_config = ConfigDict(from_attributes=True)

    schedule_id: UUID
    fire_at: datetime
    decided_at: datetime
    cause: Cause
    actor: str | None
    outcome: FireOutcome
    detail: str | None
    job_id: UUID | None
    job_state: JobState | None
    settled_at: datetime | None


class DueView(View):
    """A time to come: by the timetable, and with its jitter."""

    model_config = ConfigDict(from_attributes=True)

    fire_at: datetime
    due_at: datetime


def schedule_view(schedule: Schedule) -> ScheduleView:
    """A schedule as clients see it."""
    spec, timing, pause = schedule.spec, schedule.spec.timing, schedule.pause
    path = f"/v1/schedules/{schedule.id}"
    return ScheduleView(
        id=schedule.id,
        name=spec.name,
        job=dict(job_as_json(spec.job)),
        cron=timing.expression if isinstance(timing, Cron) else None,
        every_s=timing.every_s if isinstance(timing, Every) else None,
        adaptive=_adaptive_view(timing),
        interval_s=schedule.interval_s,
        timezone=spec.timezone,
        jitter_s=spec.jitter_s,
        misfire=spec.misfire,
        overlap=spec.overlap,
        next_fire_at=schedule.next_at,
        due_at=schedule.due_at,
        last_fire_at=schedule.last_fire_at,
        paused_at=pause.at if pause else None,
        paused_by=pause.by if pause else None,
        paused_reason=pause.reason if pause else None,
        version=schedule.version,
        created_at=schedule.created_at,
        updated_at=schedule.updated_at,
        links={"self": path, "runs": f"{path}/runs", "preview": f"{path}/preview"},
    )


def fire_view(fire: Fire) -> FireView:
    """A fire as clients see it."""
    return FireView.model_validate(fire)


def _adaptive_view(timing: Timing) -> AdaptiveView | None:
    if not isinstance(timing, Adaptive):
        return None
    return AdaptiveView(min_s=timing.min_s, max_s=timing.max_s)
