"""Timetables: crons through changes of the clock, periods, windows, jitter."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedules.cron import (
    CronTimetable,
    Jitter,
    PeriodTimetable,
    Timetable,
    find_zone,
    first_fires,
    following_due,
    parse_expression,
)
from schedules.errors import ScheduleRefused

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
ID = UUID("01990000-0000-7000-8000-000000000001")

# The changes of 2026: Berlin 29 March 02:00→03:00 and 25 October 03:00→02:00;
# New York 8 March and 1 November.
SPRING_BERLIN = datetime(2026, 3, 28, 12, tzinfo=UTC)
AUTUMN_BERLIN = datetime(2026, 10, 24, 12, tzinfo=UTC)
SPRING_NEW_YORK = datetime(2026, 3, 7, 12, tzinfo=UTC)
AUTUMN_NEW_YORK = datetime(2026, 10, 31, 12, tzinfo=UTC)


def local(table: CronTimetable, after: datetime, count: int) -> list[str]:
    fires = first_fires(table, after, count)
    return [fire.astimezone(table.zone).strftime("%d %H:%M %z") for fire in fires]


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # 02:30 does not exist on that day: it fires right after the gap, once.
        ("30 2 * * *", BERLIN, SPRING_BERLIN, ["29 03:00 +0200", "30 02:30 +0200"]),
        ("30 2 * * *", NEW_YORK, SPRING_NEW_YORK, ["08 03:00 -0400", "09 02:30 -0400"]),
        # 02:30 comes twice on that day: the first one counts.
        ("30 2 * * *", BERLIN, AUTUMN_BERLIN, ["25 02:30 +0200", "26 02:30 +0100"]),
        ("30 1 * * *", NEW_YORK, AUTUMN_NEW_YORK, ["01 01:30 -0400", "02 01:30 -0500"]),
        # Two times of one gap become one fire.
        ("0 2,3 * * *", BERLIN, SPRING_BERLIN, ["29 03:00 +0200", "30 02:00 +0200"]),
    ],
)
def test_time_of_day_fires_once_on_days_of_23_and_25_hours(
    expression: str, zone: ZoneInfo, after: datetime, expected: list[str]
) -> None:
    assert local(CronTimetable(expression, zone), after, 2) == expected


@pytest.mark.parametrize(
    ("zone", "midnight", "hours"),
    [
        (BERLIN, datetime(2026, 3, 29, tzinfo=BERLIN), 23),
        (BERLIN, datetime(2026, 10, 25, tzinfo=BERLIN), 25),
        (NEW_YORK, datetime(2026, 3, 8, tzinfo=NEW_YORK), 23),
        (NEW_YORK, datetime(2026, 11, 1, tzinfo=NEW_YORK), 25),
    ],
)
def test_hourly_keeps_to_elapsed_time(zone: ZoneInfo, midnight: datetime, hours: int) -> None:
    table = CronTimetable("0 * * * *", zone)
    start = midnight.astimezone(UTC)
    fires = first_fires(table, start - timedelta(seconds=1), hours + 1)
    assert fires == [start + timedelta(hours=hour) for hour in range(hours + 1)]
    assert fires[-1].astimezone(zone).strftime("%H:%M") == "00:00"


def test_starting_within_the_repeated_hour_never_goes_back() -> None:
    """In its second pass, the wall clock reads earlier than the fire that has happened."""
    table = CronTimetable("30 2 * * *", BERLIN)
    second_pass = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert table.after(second_pass) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_a_fraction_of_a_second_before_a_fire_it_still_comes() -> None:
    table = CronTimetable("0 12 * * *", ZoneInfo("UTC"))
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert table.after(noon - timedelta(microseconds=1)) == noon
    assert table.after(noon) == noon + timedelta(days=1)
    assert table.after(noon + timedelta(microseconds=1)) == noon + timedelta(days=1)


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "* * * * * *", "@daily", "60 * * * *", "* 24 * * *", "0 0 30 2 *",
     "*/0 * * * *", "a b c d e",
     "0 0 * * MON-", "1-0 * * * *", "² * * * *", "* * * * " + "1," * 200 + "1"],
)  # fmt: skip
def test_bad_expression_is_refused_with_its_field(expression: str) -> None:
    with pytest.raises(ScheduleRefused) as refused:
        parse_expression(expression, BERLIN)
    assert refused.value.pointer == "/cron"


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../../etc/passwd", "Europe", "europe/berlin", "UTC\x00"]
)
def test_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(ScheduleRefused, match="IANA"):
        find_zone(name)


EXPRESSIONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 0 1 * *",
     "0 9 * * MON-FRI", "0 */6 * * *", "59 23 31 12 *", "30 1,2 * * SUN"]
)  # fmt: skip
MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis wants naive bounds
ZONES = st.sampled_from(
    [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu")]
)


@given(EXPRESSIONS, ZONES, MOMENTS)
def test_fires_strictly_increase_and_do_not_depend_on_where_one_starts(
    expression: str, zone: ZoneInfo, moment: datetime
) -> None:
    table = CronTimetable(expression, zone)
    fires = first_fires(table, moment, 6)
    assert all(moment < fire for fire in fires)
    assert fires == sorted(set(fires))
    one_walk = list(table._between(moment, fires[-1]))
    assert one_walk == fires


@given(EXPRESSIONS, ZONES, MOMENTS, st.integers(1, 8), st.integers(0, 5000))
def test_newest_are_the_last_of_all(
    expression: str, zone: ZoneInfo, until: datetime, limit: int, minutes: int
) -> None:
    table = CronTimetable(expression, zone)
    after = until - timedelta(minutes=minutes)
    everything = list(table._between(after, until))
    assert table.newest(after, until, limit) == everything[-limit:]


@given(
    st.timedeltas(timedelta(seconds=1), timedelta(days=30)),
    st.timedeltas(timedelta(0), timedelta(days=400)),
    st.integers(1, 5),
)
def test_period_is_a_grid_from_its_anchor(period: timedelta, passed: timedelta, limit: int) -> None:
    anchor = datetime(2026, 1, 1, tzinfo=UTC)
    table = PeriodTimetable(anchor, period)
    now = anchor + passed
    following = table.after(now)
    assert following is not None
    assert following > now
    assert (following - anchor) % period == timedelta(0)
    assert following - now <= period
    newest = table.newest(anchor, now, limit)
    assert len(newest) == min(limit, passed // period)
    assert all(anchor < fire <= now for fire in newest)
    assert not newest or newest[-1] + period == following


def test_a_year_of_seconds_costs_as_much_as_its_limit() -> None:
    anchor = datetime(2025, 1, 1, tzinfo=UTC)
    now = anchor + timedelta(days=365)
    newest = PeriodTimetable(anchor, timedelta(seconds=1)).newest(anchor, now, 3)
    assert newest == [now - timedelta(seconds=back) for back in (2, 1, 0)]


@given(st.floats(0, 86_400), MOMENTS)
def test_jitter_is_deterministic_and_keeps_the_order(jitter_s: float, moment: datetime) -> None:
    table: Timetable = CronTimetable("*/5 * * * *", BERLIN)
    jitter = Jitter(ID, jitter_s)
    dues = jitter.spread(first_fires(table, moment, 5))
    assert dues == jitter.spread(first_fires(table, moment, 5))
    for due, later in pairwise(dues):
        assert due.fire_at <= due.due_at <= later.fire_at
        assert due.due_at - due.fire_at <= timedelta(seconds=jitter_s)
    assert following_due(table, jitter, moment) == dues[0]


def test_jitter_spreads_schedules_over_its_whole_range() -> None:
    fire = datetime(2026, 1, 1, tzinfo=UTC)
    shares = [
        (Jitter(UUID(int=number), 100).due(fire, None).due_at - fire).total_seconds()
        for number in range(200)
    ]
    assert min(shares) < 5
    assert max(shares) > 95
    assert 40 < sum(shares) / len(shares) < 60
