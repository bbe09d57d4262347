"""How fast no-op jobs are accepted and run, and what a job costs in processor time and bytes of
logs.
"""

import time

from bench.bed import Bed, BenchError
from bench.measure import CpuMeter, Spent, aof_bytes, wal_bytes
from bench.results import Result
from bench.systems import OURS, System
from cli import trial

SINGLE_JOBS = 2000
# Of the machine's processor time, taken by processes that are not measured.
CALM = 0.08
TRIES_MAX = 3


async def measure_single(bed: Bed, system: System, scale: float) -> list[Result]:
    """One caller that enqueues one job after the other."""
    await bed.clean(system)
    count = int(SINGLE_JOBS * scale)
    took = await bed.produce(system, "single", count=count)
    rate = count / took["seconds"]
    return [Result("enqueue one by one", system.name, rate, "jobs/s")]


async def measure_drain(bed: Bed, system: System, workers: int, scale: float) -> list[Result]:
    """The calmest of a few tries: other processes of the machine are nobody's slowness.

    What they took is among the results.
    """
    tries: list[tuple[float, list[Result]]] = []
    while len(tries) < TRIES_MAX and min((share for share, _ in tries), default=1) > CALM:
        tries.append(await _measure_drain(bed, system, workers, scale))
    return min(tries, key=lambda item: item[0])[1]


async def _measure_drain(
    bed: Bed, system: System, workers: int, scale: float
) -> tuple[float, list[Result]]:
    """Enqueue with no worker alive, then start the workers and watch them empty the queue."""
    await bed.clean(system)
    jobs = max(500, int(system.jobs * scale))
    wal, aof = await wal_bytes(bed.admin), await aof_bytes(bed.redis)
    took = await bed.produce(system, "bulk", kind="probe", count=jobs, chunk=system.chunk)
    await bed.analyze(system)
    drained, cpu = await _watch(bed, system, workers, jobs)
    if drained.slots < workers:
        raise BenchError(f"{system.name}: one of {workers} workers took no part in {jobs} jobs")
    wal = await wal_bytes(bed.admin) - wal
    aof = await aof_bytes(bed.redis) - aof
    settings = {"workers": workers}
    found = [
        Result("drain", system.name, drained.jobs_per_s, "jobs/s", settings),
        Result("processor time", system.name, cpu.own / drained.jobs * 1e6, "µs a job", settings),
        Result("WAL", system.name, wal / jobs, "bytes a job", settings),
        Result("append-only file", system.name, aof / jobs, "bytes a job", settings),
        Result("taken by others", system.name, cpu.foreign * 100, "% of the machine", settings),
    ]
    if system.chunk > 1:
        found.append(Result("enqueue in bulk", system.name, jobs / took["seconds"], "jobs/s"))
    return cpu.foreign, found


async def _watch(bed: Bed, system: System, workers: int, jobs: int) -> tuple[trial.Drained, Spent]:
    """The drain, and the processor time that was spent while it was measured."""
    meters: list[CpuMeter] = []
    async with bed.workers(system, workers) as running:
        pids = [*running.pids, *bed.server_pids]

        async def begin() -> None:
            meters.append(CpuMeter(pids))

        if system is OURS:
            connection = await bed.look_at_ledger()
            try:
                drained = await trial.drain(
                    lambda: trial.sample(connection), jobs=jobs, slots=workers, on_begin=begin
                )
                spent = meters[-1].read()
                await trial.assert_recorded(connection, jobs=jobs)
            finally:
                await connection.close()
            return drained, spent
        drained = await trial.drain(lambda: _sample(bed), jobs=jobs, slots=workers, on_begin=begin)
        spent = meters[-1].read()
    missing = sum(not bed.stamps.started_ns(number) for number in range(jobs))
    if missing:
        raise BenchError(f"{system.name}: {missing} of {jobs} jobs never ran")
    return drained, spent


async def _sample(bed: Bed) -> trial.Sample:
    return trial.Sample(time.monotonic(), tuple(n for n in bed.stamps.done() if n))
