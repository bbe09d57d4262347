"""How soon a job starts: from the return of its enqueue to the first line of its handler.

All processes read the same monotonic clock. Idle: one job at a time. Loaded: at 80 % of what the
system sustains when its producer and one worker share the machine.
"""

from collections.abc import Mapping

from bench.bed import Bed, BenchError
from bench.measure import percentile
from bench.peers.stamps import Since
from bench.results import Result
from bench.systems import OURS, System

IDLE_S = 10.0
WARM_UP_JOBS = 5
START_MAX_S = 20.0
SUSTAIN_S = 4.0
LOAD_S = 5.0
LOAD = 0.8
WINDOW = 2000
# Jobs that a producer under load hands over at once, where the system takes more than one.
CHUNK_MAX = 500
SINCE: Mapping[Since, str] = {"offered": "call", "accepted": "commit"}


async def measure_idle(bed: Bed, system: System, scale: float) -> list[Result]:
    """Jobs that come alone to an idle worker."""
    await bed.clean(system)
    async with bed.workers(system, 1):
        await _warm_up(bed, system)
        count = int(IDLE_S * system.idle_jobs_per_s * scale)
        jobs = range(WARM_UP_JOBS, WARM_UP_JOBS + count)
        await bed.produce(
            system, "idle", first=jobs.start, count=count, rate=system.idle_jobs_per_s
        )
        await bed.settle(jobs)
    return _results(bed, system, jobs, "idle")


async def measure_load(bed: Bed, system: System, scale: float) -> list[Result]:
    """What goes through when accepting and running share the machine, and the latency at 80 % of
    it.
    """
    chunk = min(system.chunk, CHUNK_MAX)
    await bed.clean(system)
    async with bed.workers(system, 1):
        await _warm_up(bed, system)
        sustained = await _sustained(bed, system, chunk, SUSTAIN_S * scale)
    await bed.clean(system)
    async with bed.workers(system, 1):
        await _warm_up(bed, system)
        count = int(sustained * LOAD * LOAD_S * scale)
        jobs = range(WARM_UP_JOBS, min(bed.stamps.jobs, WARM_UP_JOBS + count))
        await bed.produce(
            system,
            "pace",
            first=jobs.start,
            count=len(jobs),
            rate=sustained * LOAD,
            chunk=chunk,
        )
        # What is still in the queue belongs to the latencies, unless it never comes.
        await bed.settle(jobs)
    return [
        Result("accept and run at once", system.name, sustained, "jobs/s"),
        *_results(bed, system, jobs, "at 80 % load"),
    ]


async def _sustained(bed: Bed, system: System, chunk: int, seconds: float) -> float:
    took = await bed.produce(
        system,
        "sustain",
        first=WARM_UP_JOBS,
        count=bed.stamps.jobs - WARM_UP_JOBS,
        seconds=seconds,
        window=WINDOW if system is not OURS else 4 * WINDOW,
        chunk=chunk,
    )
    return took["jobs"] / took["seconds"]


async def _warm_up(bed: Bed, system: System) -> None:
    """The worker has imported, connected and run something."""
    await bed.produce(system, "idle", count=WARM_UP_JOBS, rate=20.0)
    if not await bed.settle(range(WARM_UP_JOBS), START_MAX_S):
        raise BenchError(f"{system.name}: the worker does not run jobs: {bed.last_words()}")


def _results(bed: Bed, system: System, jobs: range, when: str) -> list[Result]:
    """Since the call, which treats all alike, and since the commit, from which the job exists."""
    results = []
    for since, named in SINCE.items():
        waited_ms = bed.stamps.waited_ms(jobs, since=since)
        if not waited_ms:
            raise BenchError(f"{system.name}: no job was started {when}")
        for percent in (50, 99):
            measure = f"start latency {when}, p{percent}"
            value = percentile(waited_ms, percent)
            results.append(Result(measure, system.name, value, "ms", {"since": named}))
    return results
