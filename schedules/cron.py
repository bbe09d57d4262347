"""Timetables: when a schedule fires, from its timing and zone alone. Pure: no clock, no I/O.

Cron is read by `cronsim`, which follows Debian's cron at changes of the clock: a time of day that a
spring gap leaves out fires right after the gap, one that an autumn repeats fires once, and a
pattern that begins with `*` in minute or hour keeps to elapsed time (docs/decisions/0008).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Protocol
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from schedules.errors import ScheduleRefused
from schedules.model import Adaptive, Cron, Every, Timing

EXPRESSION_LENGTH_MAX = 256
FIELDS = 5
_CRON_PERIOD_MIN = timedelta(minutes=1)
_WINDOW_GROWTH = 8


class Timetable(Protocol):
    """The instants at which a schedule fires, all in UTC."""

    def after(self, moment: datetime) -> datetime | None:
        """The first fire later than `moment`; None when there is none within fifty years."""

    def newest(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The last `limit` fires in (after, until], oldest first, at a cost that `limit` bounds."""


def timetable(
    timing: Timing, timezone: str, anchor_at: datetime, interval_s: float | None
) -> Timetable:
    """The timetable of a schedule. Raises ScheduleRefused for an expression or zone that nobody
    knows.
    """
    zone = find_zone(timezone)
    match timing:
        case Cron(expression):
            return CronTimetable(parse_expression(expression, zone), zone)
        case Every(every_s):
            return PeriodTimetable(anchor_at, timedelta(seconds=every_s))
        case Adaptive(min_s):
            return PeriodTimetable(anchor_at, timedelta(seconds=interval_s or min_s))


@dataclass(frozen=True, slots=True)
class PeriodTimetable:
    """Every whole number of periods after the anchor; elapsed time, so zones play no part."""

    anchor_at: datetime
    period: timedelta

    def after(self, moment: datetime) -> datetime | None:
        """Arithmetic, however long ago the anchor is."""
        return self.anchor_at + max(1, self._passed(moment) + 1) * self.period

    def newest(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """Arithmetic, however many periods lie between."""
        last = self._passed(until)
        first = max(1, self._passed(after) + 1, last - limit + 1)
        return [self.anchor_at + count * self.period for count in range(first, last + 1)]

    def _passed(self, moment: datetime) -> int:
        return (moment - self.anchor_at) // self.period


@dataclass(frozen=True, slots=True)
class CronTimetable:
    """A cron expression in a zone."""

    expression: str
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        """May search up to fifty years of days (29 February on a Monday), which takes
        milliseconds.
        """
        return next(self._from(moment), None)

    def newest(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """Look back through windows that grow until one holds enough fires.

        Not by iterating backwards: a fire is identified by its instant, so there is one way to
        compute it.
        """
        window = limit * _CRON_PERIOD_MIN
        while True:
            start = max(after, until - window)
            found = deque(self._between(start, until), maxlen=limit)
            if len(found) == limit or start == after:
                return list(found)
            window *= _WINDOW_GROWTH

    def _between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        for fire in self._from(after):
            if fire > until:
                return
            yield fire

    def _from(self, moment: datetime) -> Iterator[datetime]:
        """Fires later than `moment`, strictly increasing.

        cronsim counts in wall time, where an autumn hour comes twice and two times of a spring gap
        become one: whatever is not later than the last instant is passed over.
        """
        last = moment
        for local in CronSim(self.expression, _on_the_second(moment).astimezone(self.zone)):
            fire = local.astimezone(UTC)
            if fire > last:
                yield fire
                last = fire


def _on_the_second(moment: datetime) -> datetime:
    """Round down: cronsim starts with the second after, and a fire is always on a whole minute."""
    return moment.replace(microsecond=0)


def parse_expression(expression: str, zone: ZoneInfo) -> str:
    """Return the expression with single blanks, or raise ScheduleRefused saying what is wrong
    with it.
    """
    fields = expression.split()
    if len(expression) > EXPRESSION_LENGTH_MAX or len(fields) != FIELDS:
        detail = "cron has five fields: minute, hour, day of month, month, day of week"
        raise ScheduleRefused("/cron", detail)
    normal = " ".join(fields)
    try:
        CronSim(normal, datetime(2000, 1, 1, tzinfo=zone))
    except CronSimError as error:
        raise ScheduleRefused("/cron", f"{normal!r} is no cron expression: {error}") from None
    return normal


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def find_zone(name: str) -> ZoneInfo:
    """Look a zone up by its IANA name; by the list, since ZoneInfo would open any file so named."""
    if name not in _zone_names():
        raise ScheduleRefused("/timezone", f"{name!r} is no IANA time zone, such as Europe/Berlin")
    return ZoneInfo(name)


def first_fires(table: Timetable, after: datetime, count: int) -> list[datetime]:
    """The next `count` fires, fewer when the timetable ends."""
    fires: list[datetime] = []
    moment = after
    while len(fires) < count and (fire := table.after(moment)) is not None:
        fires.append(fire)
        moment = fire
    return fires


@dataclass(frozen=True, slots=True)
class Due:
    """A fire by the timetable, and by jitter when it is due."""

    fire_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Jitter:
    """Spreads fires over up to `jitter_s` seconds, the same for the same fire on every machine.

    It never reaches the following fire, so that fires stay in order and none is taken for missed.
    """

    schedule_id: UUID
    jitter_s: float

    def due(self, fire_at: datetime, following: datetime | None) -> Due:
        """When the fire is due, given the one that follows it."""
        room_s = self.jitter_s
        if following is not None:
            room_s = min(room_s, (following - fire_at).total_seconds())
        return Due(fire_at, fire_at + timedelta(seconds=room_s * self._share(fire_at)))

    def _share(self, fire_at: datetime) -> float:
        """A fraction in [0, 1) that depends on the schedule and the fire alone."""
        seed = self.schedule_id.bytes + fire_at.isoformat().encode()
        return (int.from_bytes(blake2b(seed, digest_size=8).digest()) >> 11) / (1 << 53)

    def spread(self, fires: list[datetime]) -> list[Due]:
        """All but the last of `fires`, each with when it is due."""
        return [self.due(fire, following) for fire, following in pairwise(fires)]


def following_due(table: Timetable, jitter: Jitter, after: datetime) -> Due | None:
    """The first fire later than `after`, with its jitter; None when the timetable has ended."""
    fires = first_fires(table, after, 2)
    if not fires:
        return None
    return jitter.due(fires[0], fires[1] if len(fires) > 1 else None)
