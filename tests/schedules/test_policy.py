"""The recrawl policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedules.model import Adaptive
from schedules.policy import Observation, Pace, adapt, observe

BOUNDS = Adaptive(60, 86_400)
CHANGED, UNCHANGED, NOTHING = Observation(1, 9), Observation(0, 10), Observation(0, 0)


def test_change_halves_and_repeated_rest_doubles() -> None:
    pace = Pace(1000)
    pace = adapt(pace, BOUNDS, CHANGED)
    assert pace == Pace(500, 0)
    pace = adapt(pace, BOUNDS, UNCHANGED)
    assert pace == Pace(750, 1)
    pace = adapt(pace, BOUNDS, UNCHANGED)
    assert pace == Pace(1500, 2)
    assert adapt(pace, BOUNDS, CHANGED) == Pace(750, 0)


@pytest.mark.parametrize("seen", [None, NOTHING])
def test_a_run_that_saw_nothing_says_nothing(seen: Observation | None) -> None:
    assert adapt(Pace(1000, 3), BOUNDS, seen) == Pace(1000, 3)


@given(st.lists(st.sampled_from([CHANGED, UNCHANGED, NOTHING, None]), max_size=60))
def test_the_interval_stays_within_its_bounds(runs: list[Observation | None]) -> None:
    pace = Pace(BOUNDS.min_s)
    for seen in runs:
        pace = adapt(pace, BOUNDS, seen)
        assert BOUNDS.min_s <= pace.interval_s <= BOUNDS.max_s


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        ({"pages": {"fetched": 3, "unchanged": 4, "failed": 1}}, Observation(3, 4)),
        ({"pages": {"fetched": 0, "unchanged": 4}}, Observation(0, 4)),
        # Fetched again without validators, but with the content that was known.
        ({"pages": {"fetched": 3, "unchanged": 4}, "documents_changed": 1}, Observation(1, 6)),
        ({"pages": {"fetched": 3}, "documents_changed": 0}, Observation(0, 3)),
        ({"pages": {"fetched": "3"}}, None),
        ({"pages": []}, None),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_observe_reads_a_crawls_result(result: object, seen: Observation | None) -> None:
    assert observe(result) == seen  # type: ignore[arg-type] # whatever a handler of one's own returns
