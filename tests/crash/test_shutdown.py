"""SIGTERM under full load: inside the grace period, and nothing counts as a failure.

XNAI's promise is fifty of fifty: `SHUTDOWNS=50 pytest tests/crash/test_shutdown.py --junitxml FILE`
does them all, and says how long each took.
"""

import os
import signal
import time
from collections.abc import Callable

import anyio
import pytest

from jobs.states import JobState
from tests.crash.conftest import Scene, probe
from tests.workers.conftest import StartWork

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1800)]

SHUTDOWNS = int(os.environ.get("SHUTDOWNS", "1"))
GRACE_S = 3.0
# For a machine that is busy with other tests.
MARGIN_S = 3.0
KEPT = {JobState.QUEUED, JobState.SUCCEEDED}
SHORT, SPINNING, LONG = 3000, 200, 5


async def succeeded(scene: Scene) -> int:
    async with scene.db.acquire() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM history")
    return count


async def test_shutdowns_under_full_load_keep_the_grace_period_and_fail_nothing(
    scene: Scene, start_work: StartWork, record_testsuite_property: Callable[[str, object], None]
) -> None:
    environment = scene.environment | {"XNAI_POOLS": "probe=2x1", "XNAI_GRACE_S": str(GRACE_S)}
    ids = await scene.submit(*(probe(sleep_s=600.0) for _ in range(LONG)))
    for _ in range(SHUTDOWNS):
        ids += await scene.submit(*(probe(spin_s=0.05) for _ in range(SPINNING)))
        ids += await scene.submit(*(probe() for _ in range(SHORT)))
        supervisor = start_work("probe", **environment)
        before = await succeeded(scene)
        await scene.until_live(lambda live: [one.state for one in live] == ["live"] * 2)
        with anyio.fail_after(30):
            while await succeeded(scene) == before:  # noqa: ASYNC110 - the ledger tells
                await anyio.sleep(0.01)
        supervisor.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        assert await anyio.to_thread.run_sync(supervisor.wait) == 0
        took_s = time.monotonic() - told_at
        record_testsuite_property("shutdown_s", round(took_s, 2))
        # What would outlast the grace period was given back near its end.
        assert took_s < GRACE_S + MARGIN_S
    assert {job.state for job in await scene.ended(ids, *JobState)} <= KEPT
    async with scene.db.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM history WHERE state = 'failed'") == 0
        assert await connection.fetchval("SELECT coalesce(sum(failures), 0) FROM jobs") == 0
        assert await connection.fetchval("SELECT count(*) FROM held") == 0
    assert await scene.losses() == 0


async def test_a_second_sigterm_ends_at_once_and_costs_the_jobs_nothing(
    scene: Scene, start_work: StartWork
) -> None:
    supervisor = start_work("probe", **scene.environment | {"XNAI_GRACE_S": "600"})
    ids = await scene.submit(*(probe(sleep_s=600.0) for _ in range(5)))
    await scene.ended(ids, JobState.RUNNING)
    supervisor.send_signal(signal.SIGTERM)
    await scene.until_live(lambda live: [one.state for one in live] == ["draining"])
    supervisor.send_signal(signal.SIGTERM)
    with anyio.fail_after(10):
        assert await anyio.to_thread.run_sync(supervisor.wait) == 0
    await scene.ended(ids, JobState.QUEUED)
    assert await scene.losses() == 0
