"""The records of schedules: what a user asked for, where it stands, what it fired. Plain data."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from jobs.model import NewJob, TenantId
from jobs.states import JobState


class Misfire(StrEnum):
    """What becomes of fires that no ticker saw in time: none, the newest, or all (bounded)."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


class Overlap(StrEnum):
    """What becomes of a fire whose predecessor has not settled: none of it, or it waits for its
    turn.
    """

    SKIP = "skip"
    QUEUE = "queue"


class Cause(StrEnum):
    """Why a fire happened: its time came, or somebody triggered it."""

    TIME = "time"
    MANUAL = "manual"


class FireOutcome(StrEnum):
    """What a fire led to: a job, or one of the reasons for none."""

    ENQUEUED = "enqueued"
    SKIPPED = "skipped"  # by overlap, or because too many of its jobs wait already
    MISSED = "missed"  # by the misfire policy
    REFUSED = "refused"  # the ledger did not take the job: `detail` says why


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields of cron, read in the schedule's time zone."""

    expression: str


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed period in seconds, counted from when the schedule was made or its timing changed."""

    every_s: float


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A period between two bounds in seconds that follows how often the pages change."""

    min_s: float
    max_s: float


type Timing = Cron | Every | Adaptive


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """What a user asks for. Of `job`, the times (run_at, delay_s, expires_at), custom_id,
    depends_on and schedule_id must be left out: a fire sets them.
    """

    name: str
    job: NewJob
    timing: Timing
    timezone: str = "UTC"
    jitter_s: float = 0.0
    misfire: Misfire = Misfire.ONCE
    overlap: Overlap = Overlap.SKIP


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when, by whom and why a schedule does not fire by itself."""

    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it stands. `next_at` is the next fire by the timetable, `due_at` with its
    jitter; both None while paused. `interval_s` is the period that an adaptive schedule has
    reached. `version` grows with every change by a user, so that it can serve as an ETag.
    """

    id: UUID
    tenant_id: TenantId
    spec: ScheduleSpec
    version: int
    pause: Pause | None
    next_at: datetime | None
    due_at: datetime | None
    interval_s: float | None
    unchanged_runs: int
    anchor_at: datetime
    last_fire_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Fire:
    """One fire: its time by the timetable, when and how it was decided, and its job.

    `job_state` is the state in which the job ended, None while it is not settled.
    """

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
