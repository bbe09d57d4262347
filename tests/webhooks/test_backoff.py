"""The retry schedule, and the bookkeeping of lanes."""

import random
from datetime import UTC, datetime

import pytest

from webhooks.backoff import DELAYS_S, JITTER, delay_s
from webhooks.lanes import Lanes
from webhooks.request import retry_after_s

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_the_schedule_is_the_one_of_the_standard() -> None:
    """10 attempts over about three days; jitter only ever adds."""
    rng = random.Random(1)
    delays = [delay_s(failures, rng) for failures in range(10)]
    minute, hour = 60, 3600
    standard = [0, 5, 5 * minute, 30 * minute, *(h * hour for h in (2, 5, 10, 14, 20, 24))]
    for delay, least in zip(delays, standard, strict=True):
        assert delay is not None
        assert least <= delay <= least * (1 + JITTER)
    assert delay_s(len(DELAYS_S), rng) is None
    assert delays[5] != delay_s(5, rng)


def test_retry_after_only_ever_puts_off() -> None:
    rng = random.Random(1)
    assert delay_s(1, rng, 900.0) == 900.0
    assert (delay_s(3, rng, 1.0) or 0) >= 1800


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        ("0", 0.0),
        ("Fri, 01 May 2026 12:01:00 GMT", 60.0),
        ("Fri, 01 May 2026 11:00:00 GMT", 0.0),
        ("99999999999", 86_400.0),
        ("9" * 400, 86_400.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after_is_read_and_bounded(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOON) == seconds


def test_a_host_has_its_share_and_a_slow_one_a_single_place() -> None:
    lanes = Lanes(total=10, per_host=4)
    lanes.enter("a")
    lanes.enter("a")
    room = lanes.room()
    assert (room.total, room.per_host, dict(room.free)) == (8, 4, {"a": 2})
    lanes.leave("a", timed_out=True)
    assert lanes.room().free["a"] == 0
    lanes.leave("a", timed_out=True)
    assert lanes.room().free == {"a": 1}
    lanes.enter("a")
    assert lanes.room().free == {"a": 0}
    lanes.leave("a", timed_out=False)
    assert lanes.room().free == {}
    assert lanes.room().total == 10
