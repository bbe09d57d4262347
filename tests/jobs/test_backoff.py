"""When a failed attempt runs again."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest

from jobs.kinds import KindRegistry, load_kinds
from jobs.outcomes import AFTER_S_MAX, Backoff, Failed, Problem
from tests.jobs.desk import BROKEN, Desk, probe

RNG = random.Random(3)


def test_the_ceiling_doubles_up_to_the_cap_and_the_jitter_is_full() -> None:
    backoff = Backoff(2.0, 60.0)
    for failures, ceiling in ((1, 2.0), (2, 4.0), (3, 8.0), (5, 32.0), (6, 60.0), (500, 60.0)):
        drawn = [backoff.delay_s(failures, RNG) for _ in range(2000)]
        assert 0.0 < min(drawn) < 0.05 * ceiling
        assert 0.95 * ceiling < max(drawn) <= ceiling
        assert sum(drawn) / len(drawn) == pytest.approx(ceiling / 2, rel=0.1)


@pytest.mark.parametrize(
    ("asked", "pause"), [(0.0, 0.0), (7.5, 7.5), (7200.0, 7200.0), (1e9, AFTER_S_MAX), (-3.0, 0.0)]
)
def test_what_a_server_asks_for_is_respected_beyond_the_cap(asked: float, pause: float) -> None:
    problem = Problem("throttled", "503", after_s=asked)
    assert Backoff(2.0, 60.0).pause_s(problem, 1, RNG) == pause


def _kinds(**fields: Any) -> KindRegistry:
    known = dict(load_kinds().kinds)
    return KindRegistry(MappingProxyType(known | {"probe": replace(known["probe"], **fields)}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Backoff(2.0, 60.0)),
        ({"backoff_s": 0.5}, Backoff(0.5, 60.0)),
        ({"backoff_max_s": 5.0}, Backoff(2.0, 5.0)),
        ({"backoff_s": 100.0}, Backoff(100.0, 100.0)),
    ],
)
def test_a_kind_bounds_its_own_pauses(fields: dict[str, float], expected: Backoff) -> None:
    usual = Backoff(2.0, 60.0)
    assert _kinds(**fields).backoff_of("probe", usual) == expected
    assert _kinds(**fields).backoff_of("unknown", usual) is usual


@pytest.mark.anyio
async def test_a_job_waits_as_its_kind_says_and_as_it_was_asked_to(desk: Desk) -> None:
    desk.kinds = _kinds(backoff_s=0.001, backoff_max_s=0.001)
    quick, asked = await desk.enqueue(probe(priority=9), probe())
    slot = await desk.slot()
    one, other = await desk.claim(slot)
    await desk.end(slot, [one], BROKEN)
    await desk.end(slot, [other], Failed(Problem("throttled", "503", after_s=7200.0)))
    now = datetime.now(UTC)
    assert (await desk.get(quick.id)).run_at < now + timedelta(seconds=1)
    assert now + timedelta(hours=1) < (await desk.get(asked.id)).run_at
    for job_id in (quick.id, asked.id):
        job = await desk.get(job_id)
        assert (job.state, job.state_reason) == ("scheduled", "backoff")
