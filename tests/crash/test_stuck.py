"""Jobs that do not end: cancelled within 5 s and ended by their time-out, whatever they do."""

from dataclasses import replace

import anyio
import pytest

from jobs import ledger
from jobs.model import DEFAULT_TENANT, NewJob
from jobs.states import JobState
from tests.crash.conftest import Scene, probe
from tests.workers.conftest import StartWork

pytestmark = pytest.mark.anyio

CANCEL_S = 5.0  # what the product promises
WAYS = [
    ("loop", "shared"),
    ("sleep", "shared"),
    ("ignore", "shared"),
    ("thread", "alone"),
    ("gil", "alone"),
]
POOLS = "shared=3x1,alone=2x1,probe=1x1"


def stuck(how: str, pool: str) -> NewJob:
    return NewJob(f"stuck-{pool}", {"how": how}, max_attempts=1)


async def test_every_way_of_not_ending_is_cancelled_within_5_s(
    scene: Scene, start_work: StartWork
) -> None:
    start_work("alone", "shared", "probe", **scene.environment | {"XNAI_POOLS": POOLS})
    await scene.until_live(lambda live: [one.state for one in live] == ["live"] * 6)
    ids = []
    for how, pool in WAYS:
        # One after the other, so that each has a slot of its own.
        ids += await scene.submit(stuck(how, pool))
        await scene.ended(ids[-1:], JobState.RUNNING)
    ids += await scene.submit(
        replace(probe(), delay_s=3600.0), NewJob("stuck-alone", {"how": "gil"})
    )
    async with scene.db.acquire() as connection:
        with anyio.fail_after(CANCEL_S):
            await ledger.cancel(connection, DEFAULT_TENANT, ids)
            await scene.ended(ids, JobState.CANCELLED)


async def test_every_way_of_not_ending_ends_at_its_timeout(
    scene: Scene, start_work: StartWork
) -> None:
    start_work("alone", "shared", **scene.environment | {"XNAI_POOLS": POOLS})
    await scene.until_live(lambda live: [one.state for one in live] == ["live"] * 5)
    ids = []
    for how, pool in WAYS:
        ids += await scene.submit(replace(stuck(how, pool), timeout_s=0.5))
        await scene.ended(ids[-1:], JobState.RUNNING, JobState.FAILED)
    jobs = await scene.ended(ids, JobState.FAILED)
    found = {how: (job.error or {})["type"] for (how, _), job in zip(WAYS, jobs, strict=True)}
    assert found == dict.fromkeys(found, "timeout")
    assert await scene.losses() == 0
