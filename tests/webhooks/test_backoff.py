"""The retry schedule, and the bookkeeping of lanes."""

import random
from datetime import UTC, datetime

import pytest

from webhooks.backoff import (
    DELAYS_S,
    JITTER,
    OPEN_AFTER,
    PROBE_FIRST_S,
    PROBE_LAST_S,
    delay_s,
    probe_in_s,
)
from webhooks.lanes import KnownLane, Lanes, Room
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


@pytest.mark.parametrize("failures", [0, 1, OPEN_AFTER - 1])
def test_a_circuit_is_closed_until_enough_failures_unless_the_receiver_asks(failures: int) -> None:
    rng = random.Random(1)
    assert probe_in_s(failures, rng) is None
    assert probe_in_s(failures, rng, 30.0) == 30.0


def test_probes_double_up_to_their_limit() -> None:
    rng = random.Random(1)
    pauses = [probe_in_s(OPEN_AFTER + n, rng) or 0.0 for n in range(2000)]
    assert PROBE_FIRST_S <= pauses[0] <= PROBE_FIRST_S * (1 + JITTER)
    assert pauses[3] >= 8 * PROBE_FIRST_S
    assert all(PROBE_LAST_S <= pause <= PROBE_LAST_S * (1 + JITTER) for pause in pauses[10:])
    assert probe_in_s(OPEN_AFTER, rng, 7200.0) == 7200.0


def test_a_lane_is_as_wide_as_its_receiver_has_earned() -> None:
    lanes = Lanes(total=20)
    assert lanes.room() == Room(20, 10)
    for width in (2, 4, 8, 8):
        lanes.enter("a")
        lanes.leave("a", is_accepted=True)
        assert lanes.room().known == (KnownLane("a", width, is_proven=True),)
    lanes.enter("a")
    assert lanes.room() == Room(19, 10, (KnownLane("a", 7, is_proven=True),))
    lanes.leave("a", is_accepted=False)
    assert lanes.room() == Room(20, 10)


def test_lanes_that_have_earned_nothing_leave_room_for_the_others() -> None:
    lanes = Lanes(total=10)
    for number in range(5):
        lanes.enter(f"hangs-{number}")
    room = lanes.room()
    assert (room.total, room.unproven) == (5, 0)
    assert {lane.free for lane in room.known} == {0}
    lanes.leave("hangs-0", is_accepted=False)
    assert lanes.room().unproven == 1
