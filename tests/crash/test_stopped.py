"""SIGSTOP: a stopped slot or supervisor is replaced, and what it still writes is refused."""

import signal

import psutil
import pytest

from jobs.slots import SlotState
from tests.crash.conftest import Scene, slot_processes, until
from tests.workers.conftest import StartWork

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("pool", ["alone", "shared"])
async def test_a_stopped_slot_is_replaced_and_its_late_write_refused(
    scene: Scene, start_work: StartWork, pool: str
) -> None:
    supervisor = start_work(pool, **scene.environment)
    job_id = await scene.effect(pool)
    (stopped,) = slot_processes(supervisor.pid, pool)
    cpus = stopped.cpu_affinity()
    stopped.send_signal(signal.SIGSTOP)
    (job,) = await scene.ended([job_id])
    assert (job.attempt, await scene.losses()) == (2, 0)
    (replacement,) = (p for p in slot_processes(supervisor.pid, pool) if p != stopped)
    assert replacement.cpu_affinity() == cpus
    assert await scene.effects() == [2]

    (scene.folder / "go").touch()
    stopped.send_signal(signal.SIGCONT)
    psutil.wait_procs([stopped], timeout=20)
    assert not stopped.is_running()
    assert await scene.effects() == [2]
    assert scene.counted("xnai_fenced_writes_total") >= 1
    assert [job.attempt for job in await scene.ended([job_id])] == [2]


async def test_a_short_stop_costs_nothing(scene: Scene, start_work: StartWork) -> None:
    supervisor = start_work("shared", **scene.environment, XNAI_HEARTBEAT_S="0.1")
    job_id = await scene.effect("shared")
    (slot,) = slot_processes(supervisor.pid, "shared")
    slot.send_signal(signal.SIGSTOP)
    await scene.until_live(lambda live: [one.state for one in live] == [SlotState.STOPPED])
    slot.send_signal(signal.SIGCONT)
    await scene.until_live(lambda live: [one.state for one in live] == [SlotState.LIVE])
    (scene.folder / "go").touch()
    (job,) = await scene.ended([job_id])
    assert job.attempt == 1
    assert slot.is_running()


async def test_a_stopped_supervisor_loses_its_slots_to_others_and_replaces_them(
    scene: Scene, start_work: StartWork
) -> None:
    quick = {"XNAI_HEARTBEAT_S": "0.1", "XNAI_DEAD_AFTER_S": "1"}
    first = start_work("shared", **scene.environment | quick)
    job_id = await scene.effect("shared")
    (old_slot,) = await scene.live()
    (old_process,) = slot_processes(first.pid)
    first.send_signal(signal.SIGSTOP)
    start_work("shared", **scene.environment | quick)
    (job,) = await scene.ended([job_id])
    assert (job.attempt, await scene.losses()) == (2, 0)
    (scene.folder / "go").touch()
    first.send_signal(signal.SIGCONT)
    await scene.until_live(
        lambda live: any(
            one.supervisor_id == old_slot.supervisor_id and one.id != old_slot.id for one in live
        )
    )
    await until(lambda: not old_process.is_running())
    assert await scene.effects() == [2]
