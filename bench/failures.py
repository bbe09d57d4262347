"""What is left after the worst: how long until a killed worker's jobs run again, and what a
FLUSHALL takes.
"""

import os
import signal
import time

import anyio
import psutil

from bench.bed import Bed, BenchError, Workers, open_lane
from bench.results import Result
from bench.systems import OURS, System

HELD_JOBS = 5
HELD_MAX_S = 30.0
# Longer than this nobody waits at night; what takes longer is reported as longer.
RESCUE_MAX_S = 60.0
# Until the second worker has connected after it said that it is about to.
CONNECT_S = 3.0
FLUSHED_JOBS = 1000
STILL_S = 6.0


async def measure_rescues(bed: Bed, systems: tuple[System, ...]) -> list[Result]:
    """Side by side in lanes of their own, since nearly all of it is waiting."""
    found: list[Result] = []
    failures: list[str] = []

    async def measure(system: System, lane: int) -> None:
        async with open_lane(bed.servers, lane) as own:
            try:
                found.append(await _measure_rescue(own, system))
            except BenchError as error:
                failures.append(str(error))

    async with anyio.create_task_group() as group:
        for lane, system in enumerate(systems, start=1):
            group.start_soon(measure, system, lane)
    if failures:
        raise BenchError("; ".join(failures))
    return found


async def _measure_rescue(bed: Bed, system: System) -> Result:
    """SIGKILL the one worker that has the jobs in hand, while another one has nothing to do."""
    await bed.clean(system)
    bed.stamps.hold(on=True)
    async with bed.workers(system, 1) as workers:
        await bed.produce(system, "single", count=HELD_JOBS)
        if not await bed.settle(range(HELD_JOBS), HELD_MAX_S):
            raise BenchError(f"{system.name}: the jobs to be held did not start")
        await bed.add_worker(system, workers)
        await anyio.sleep(CONNECT_S)
        workers.kill(0)
        return await _wait_again(bed, system, "worker")


async def measure_own_slot(bed: Bed) -> list[Result]:
    """Ours: SIGKILL one of a supervisor's two slots, the one that has the jobs."""
    await bed.clean(OURS)
    bed.stamps.hold(on=True)
    async with bed.workers(OURS, 2) as workers:
        await bed.produce(OURS, "single", count=HELD_JOBS)
        if not await bed.settle(range(HELD_JOBS), HELD_MAX_S):
            raise BenchError("xnai: the jobs to be held did not start")
        _kill_holders(bed, workers)
        return [await _wait_again(bed, OURS, "slot")]


def _kill_holders(bed: Bed, workers: Workers) -> None:
    """Handlers count at the place of their slot's core."""
    begun = bed.stamps.done()
    for slot in psutil.Process(workers.pids[0]).children():
        if begun[min(slot.cpu_affinity()) % 2]:
            os.kill(slot.pid, signal.SIGKILL)


async def _wait_again(bed: Bed, system: System, killed: str) -> Result:
    killed_ns = time.monotonic_ns()
    again: list[int] = []
    with anyio.move_on_after(RESCUE_MAX_S):
        while not again or not all(again):
            again = [bed.stamps.again_ns(number) for number in range(HELD_JOBS)]
            await anyio.sleep(0.02)
    settings = {"killed": killed}
    measure = "run again after SIGKILL"
    if not all(again):
        return Result(measure, system.name, RESCUE_MAX_S, "s", {**settings, "longer": True})
    return Result(measure, system.name, (max(again) - killed_ns) / 1e9, "s", settings)


async def measure_flush(bed: Bed, system: System, scale: float) -> list[Result]:
    """FLUSHALL while jobs are queued and no worker is alive; then count those that still run."""
    del scale
    await bed.clean(system)
    await bed.produce(system, "bulk", count=FLUSHED_JOBS, chunk=system.chunk)
    await bed.redis.flushall()
    async with bed.workers(system, 1):
        await bed.settle(range(FLUSHED_JOBS), STILL_S)
    ran = sum(bool(bed.stamps.started_ns(number)) for number in range(FLUSHED_JOBS))
    return [Result("lost by FLUSHALL of 1,000", system.name, FLUSHED_JOBS - ran, "jobs")]
