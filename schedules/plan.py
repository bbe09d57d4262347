"""Decides what a due schedule does: which fires run, which are left out, and when the next one
is. Pure.

Everything is bounded: after a year of standing still, a schedule of every second decides on
CATCH_UP_MAX fires, not on thirty million.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from schedules.cron import Due, Jitter, Timetable, following_due, timetable
from schedules.model import Adaptive, FireOutcome, Misfire, Overlap, Schedule

CATCH_UP_MAX = 100
QUEUED_MAX = 100
MISFIRE_GRACE = timedelta(seconds=60)

LATE = "no ticker saw it in time"
SUPERSEDED = "a later fire stands for it"
OVERLAP = "the job of an earlier fire has not settled"
QUEUE_FULL = f"{QUEUED_MAX} jobs of this schedule have not settled"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one fire; `detail` says why it makes no job."""

    fire_at: datetime
    outcome: FireOutcome
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions for a due schedule, oldest first, and where it goes on. `next` is None at
    the end of its timetable. `truncated`: more fires were missed than are listed.
    """

    schedule: Schedule
    decisions: tuple[Decision, ...]
    next: Due | None
    anchor_at: datetime
    truncated: bool = False

    @property
    def missed(self) -> tuple[Decision, ...]:
        """The fires that were missed for good."""
        return tuple(d for d in self.decisions if d.outcome is FireOutcome.MISSED)


def timetable_of(schedule: Schedule, anchor_at: datetime | None = None) -> Timetable:
    """The timetable that a kept schedule follows, from its own anchor or another."""
    spec = schedule.spec
    anchor_at = schedule.anchor_at if anchor_at is None else anchor_at
    return timetable(spec.timing, spec.timezone, anchor_at, schedule.interval_s)


def decide(schedule: Schedule, now: datetime, unsettled: int) -> Plan:
    """Decide on everything that is due now; `unsettled` of the schedule's jobs have not settled."""
    table = timetable_of(schedule)
    due, truncated = _due_fires(schedule, table, now)
    run_from = _run_from(schedule.spec.misfire, due, now)
    missed = [_missed(fire, schedule.spec.misfire) for fire in due[:run_from]]
    run = _with_overlap(schedule.spec.overlap, due[run_from:], unsettled)
    newest = due[-1].fire_at
    adaptive = isinstance(schedule.spec.timing, Adaptive)
    anchor_at = newest if adaptive else schedule.anchor_at
    jitter = Jitter(schedule.id, schedule.spec.jitter_s)
    upcoming = following_due(timetable_of(schedule, anchor_at), jitter, newest)
    return Plan(schedule, (*missed, *run), upcoming, anchor_at, truncated=truncated)


def _due_fires(schedule: Schedule, table: Timetable, now: datetime) -> tuple[list[Due], bool]:
    """The fires that are due, at most CATCH_UP_MAX of the newest, and whether there were more.

    The planned fire is among them although it may lie beside the timetable (an adapted interval).
    """
    if schedule.next_at is None or schedule.due_at is None:
        detail = f"schedule {schedule.id} has nothing planned"
        raise ValueError(detail)
    jitter = Jitter(schedule.id, schedule.spec.jitter_s)
    later = table.newest(schedule.next_at, now, CATCH_UP_MAX + 1)
    following = [*later[1:], table.after(later[-1])] if later else []
    dues = [jitter.due(fire, after) for fire, after in zip(later, following, strict=True)]
    due = [Due(schedule.next_at, schedule.due_at), *(item for item in dues if item.due_at <= now)]
    return due[-CATCH_UP_MAX:], len(due) > CATCH_UP_MAX


def _run_from(misfire: Misfire, due: list[Due], now: datetime) -> int:
    """The position of the first fire that runs: all that are older are missed.

    The newest fire is on time if it was due less than the grace ago; every older one is late.
    """
    match misfire:
        case Misfire.ALL:
            return 0
        case Misfire.ONCE:
            return len(due) - 1
        case Misfire.SKIP:
            on_time = now - due[-1].due_at <= MISFIRE_GRACE
            return len(due) - 1 if on_time else len(due)
        case _:
            assert_never(misfire)


def _missed(due: Due, misfire: Misfire) -> Decision:
    detail = LATE if misfire is Misfire.SKIP else SUPERSEDED
    return Decision(due.fire_at, FireOutcome.MISSED, detail)


def _with_overlap(overlap: Overlap, due: list[Due], unsettled: int) -> list[Decision]:
    """Let as many run as the overlap policy has room for, oldest first."""
    room, detail = (1, OVERLAP) if overlap is Overlap.SKIP else (QUEUED_MAX, QUEUE_FULL)
    room = max(0, room - unsettled)
    run = [Decision(item.fire_at, FireOutcome.ENQUEUED) for item in due[:room]]
    return run + [Decision(item.fire_at, FireOutcome.SKIPPED, detail) for item in due[room:]]
