"""What a due schedule decides: misfires, overlaps, bounds. Pure, so the clock is an argument."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from jobs.model import DEFAULT_TENANT, NewJob
from schedules.cron import Due
from schedules.model import (
    Adaptive,
    Cron,
    Every,
    FireOutcome,
    Misfire,
    Overlap,
    Schedule,
    ScheduleSpec,
    Timing,
)
from schedules.plan import CATCH_UP_MAX, QUEUED_MAX, decide

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EVERY_MINUTE = Every(60)
ENQUEUED, MISSED, SKIPPED = FireOutcome.ENQUEUED, FireOutcome.MISSED, FireOutcome.SKIPPED


def make(
    timing: Timing = EVERY_MINUTE,
    *,
    misfire: Misfire = Misfire.ONCE,
    overlap: Overlap = Overlap.QUEUE,
    jitter_s: float = 0.0,
) -> Schedule:
    """A schedule whose next fire is at noon."""
    spec = ScheduleSpec("plan", NewJob("probe", {}), timing, "UTC", jitter_s, misfire, overlap)
    return Schedule(
        id=UUID(int=1),
        tenant_id=DEFAULT_TENANT,
        spec=spec,
        version=1,
        pause=None,
        next_at=NOON,
        due_at=NOON,
        interval_s=60 if isinstance(timing, Adaptive) else None,
        unchanged_runs=0,
        anchor_at=NOON - MINUTE,
        last_fire_at=None,
        created_at=NOON - MINUTE,
        updated_at=NOON - MINUTE,
    )


def outcomes(schedule: Schedule, now: datetime, unsettled: int = 0) -> list[FireOutcome]:
    return [decision.outcome for decision in decide(schedule, now, unsettled).decisions]


@pytest.mark.parametrize("misfire", Misfire)
def test_on_time_every_policy_fires_once_and_goes_on(misfire: Misfire) -> None:
    plan = decide(make(misfire=misfire), NOON + timedelta(seconds=2), 0)
    assert [(d.fire_at, d.outcome) for d in plan.decisions] == [(NOON, ENQUEUED)]
    assert plan.next == Due(NOON + MINUTE, NOON + MINUTE)


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        (Misfire.SKIP, [MISSED, MISSED, MISSED]),
        (Misfire.ONCE, [MISSED, MISSED, ENQUEUED]),
        (Misfire.ALL, [ENQUEUED, ENQUEUED, ENQUEUED]),
    ],
)
def test_three_hours_late(misfire: Misfire, expected: list[FireOutcome]) -> None:
    late = make(Every(3600), misfire=misfire)
    late = replace(late, anchor_at=NOON - timedelta(hours=1))
    now = NOON + timedelta(hours=2, minutes=30)
    assert outcomes(late, now) == expected
    upcoming = decide(late, now, 0).next
    assert upcoming is not None
    assert upcoming.fire_at == NOON + timedelta(hours=3)


def test_skip_still_runs_the_newest_when_that_one_is_on_time() -> None:
    assert outcomes(make(misfire=Misfire.SKIP), NOON + 3 * MINUTE) == [
        MISSED, MISSED, MISSED, ENQUEUED
    ]  # fmt: skip


@pytest.mark.parametrize("timing", [Every(1), Cron("* * * * *"), Adaptive(60, 3600)])
@pytest.mark.parametrize("misfire", Misfire)
def test_a_year_late_is_bounded(timing: Timing, misfire: Misfire) -> None:
    now = NOON + timedelta(days=365)
    plan = decide(make(timing, misfire=misfire), now, 0)
    assert len(plan.decisions) == CATCH_UP_MAX
    assert plan.truncated
    assert plan.decisions[-1].fire_at > now - MINUTE
    assert plan.next is not None
    assert plan.next.fire_at > now


def test_skip_leaves_out_what_would_overlap() -> None:
    schedule = make(overlap=Overlap.SKIP)
    assert outcomes(schedule, NOON, unsettled=1) == [SKIPPED]
    assert outcomes(schedule, NOON, unsettled=0) == [ENQUEUED]


def test_skip_lets_only_the_first_of_all_missed_run() -> None:
    schedule = make(overlap=Overlap.SKIP, misfire=Misfire.ALL)
    assert outcomes(schedule, NOON + 2 * MINUTE) == [ENQUEUED, SKIPPED, SKIPPED]


def test_queue_is_bounded() -> None:
    schedule = make(overlap=Overlap.QUEUE)
    assert outcomes(schedule, NOON, unsettled=QUEUED_MAX - 1) == [ENQUEUED]
    assert outcomes(schedule, NOON, unsettled=QUEUED_MAX) == [SKIPPED]


def test_a_fire_that_jitter_still_holds_back_waits() -> None:
    """The clock has passed 12:01, but that fire is due only later within its minute."""
    schedule = make(jitter_s=60)
    plan = decide(schedule, NOON + MINUTE, 0)
    assert [decision.fire_at for decision in plan.decisions] == [NOON]
    assert plan.next is not None
    assert plan.next.fire_at == NOON + MINUTE
    assert NOON + MINUTE < plan.next.due_at < NOON + 2 * MINUTE


def test_adaptive_counts_from_its_last_fire() -> None:
    schedule = replace(make(Adaptive(60, 3600)), interval_s=600.0)
    plan = decide(schedule, NOON + timedelta(seconds=5), 0)
    assert plan.anchor_at == NOON
    assert plan.next is not None
    assert plan.next.fire_at == NOON + timedelta(seconds=600)
