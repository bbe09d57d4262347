"""SIGKILL: of a slot, of a supervisor; who runs the jobs again, when, and what it costs them."""

import anyio
import psutil
import pytest

from jobs.model import NewJob
from jobs.states import JobState
from tests.crash.conftest import Scene, probe, slot_processes, until
from tests.crash.kinds import IN_HAND
from tests.workers.conftest import StartWork

pytestmark = pytest.mark.anyio

# What the product promises.
SLOT_RESCUE_S = 3.0
SUPERVISOR_RESCUE_S = 15.0
# Longer than any test: whoever is found dead was found by other means than missing beats.
NO_BEATS_S = "300"


async def test_a_killed_slots_job_runs_again_within_3_s(
    scene: Scene, start_work: StartWork
) -> None:
    supervisor = start_work("shared", **scene.environment | {"XNAI_POOLS": "shared=2x1"})
    await scene.until_live(lambda live: [one.state for one in live] == ["live"] * 2)
    job_id = await scene.effect("shared")
    (held_by,) = [one for one in await scene.live() if one.running]
    (victim,) = slot_processes(supervisor.pid, f"shared slot {held_by.number}")
    with anyio.fail_after(SLOT_RESCUE_S):
        victim.kill()
        await until(scene.began(2).exists)
    await scene.ended([job_id])
    assert await scene.losses() == 1


async def test_a_killed_supervisors_successor_knows_at_once(
    scene: Scene, start_work: StartWork
) -> None:
    environment = scene.environment | {"XNAI_DEAD_AFTER_S": NO_BEATS_S}
    first = start_work("shared", **environment)
    job_id = await scene.effect("shared")
    children = psutil.Process(first.pid).children()
    with anyio.fail_after(SUPERVISOR_RESCUE_S):
        first.kill()
        start_work("shared", **environment)
        await until(scene.began(2).exists)
    await scene.ended([job_id])
    assert psutil.wait_procs(children, timeout=5)[1] == []


async def test_a_killed_supervisor_makes_no_suspects(scene: Scene, start_work: StartWork) -> None:
    environment = scene.environment | {"XNAI_DEAD_AFTER_S": NO_BEATS_S}
    first = start_work("shared", **environment)
    waiting = NewJob("effect-shared", {"folder": str(scene.folder)})
    ids = await scene.submit(*[waiting] * IN_HAND)
    await scene.ended(ids, JobState.RUNNING)
    first.kill()
    start_work("shared", **environment)
    jobs = await scene.ended(ids)
    assert [job.attempt for job in jobs] == [2] * IN_HAND
    assert await scene.losses() == 0


async def test_two_deaths_of_a_slot_make_its_job_run_alone_and_the_third_fails_it(
    scene: Scene, start_work: StartWork
) -> None:
    start_work("probe", **scene.environment)
    innocent = await scene.submit(*(probe(sleep_s=0.2) for _ in range(5)))
    (culprit,) = await scene.submit(probe(outcome="crash"))
    (job,) = await scene.ended([culprit], JobState.FAILED)
    assert job.error is not None
    assert job.error["type"] == "worker_lost"
    assert job.attempt == 3
    await scene.ended(innocent)
