"""Promises that no peer makes, so that nobody is beside us: limits for each key, and shutdowns
under load.
"""

import signal
import time

import anyio
from anyio.abc import Process

from bench.bed import Bed, BenchError
from bench.latency import START_MAX_S, WARM_UP_JOBS
from bench.measure import QUERIES, percentile
from bench.results import Result
from bench.systems import OURS
from cli import trial
from jobs import limits
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, NewJob
from runtime.postgres import Connection
from runtime.redis import Client
from runtime.redis import connect as connect_redis

# None; room for all jobs, so that a key costs its bookkeeping; and too few, so that jobs wait.
KEYS = (0, 1000, 100)
PERMITS_A_KEY = 100
KEYED_JOBS = 100_000
SATURATING_JOBS = 100_000
FIRST_PRIORITY = 9
LATENCY_S = 8.0
LATENCY_JOBS_PER_S = 25.0
SHUTDOWNS = 50
# Long enough that every slot has its hands full at the signal, short enough to end in the grace.
WORK_S = 0.2
JOBS_A_SHUTDOWN = 4000
TAKES_PART_S = 30.0


async def measure_keyed_drain(bed: Bed, scale: float, *, keys: int) -> list[Result]:
    """A drain in which every job has one of so many concurrency keys; else alike, run by run."""
    await bed.clean(OURS)
    jobs = int(KEYED_JOBS * scale)
    connection = await bed.look_at_ledger()
    redis = connect_redis(bed.settings(1))
    try:
        for key in range(keys):
            await limits.put(connection, DEFAULT_TENANT, f"key-{key}", PERMITS_A_KEY)
        await _accept(
            connection,
            redis,
            [
                NewJob("probe", {}, concurrency_key=f"key-{number % keys}" if keys else None)
                for number in range(jobs)
            ],
        )
        await bed.analyze(OURS)
        async with bed.workers(OURS, 1):
            drained = await trial.drain(lambda: trial.sample(connection), jobs=jobs, slots=1)
        await trial.assert_recorded(connection, jobs=jobs)
    finally:
        await redis.aclose()
        await connection.close()
    settings = {"keys": keys, "permits": PERMITS_A_KEY if keys else 0}
    return [Result("drain with limits", OURS.name, drained.jobs_per_s, "jobs/s", settings)]


async def measure_saturated_key(bed: Bed, scale: float, *, saturated: bool) -> list[Result]:
    """Start latency of other jobs while one key has 100,000 jobs first in line, or none."""
    await bed.clean(OURS)
    connection = await bed.look_at_ledger()
    redis = connect_redis(bed.settings(1))
    waiting = int(SATURATING_JOBS * scale) if saturated else 0
    try:
        async with bed.workers(OURS, 1):
            await bed.produce(OURS, "idle", count=WARM_UP_JOBS, rate=20.0)
            if not await bed.settle(range(WARM_UP_JOBS), START_MAX_S):
                raise BenchError("xnai: the worker does not run jobs")
            # The first takes the key's only permit and keeps it; the rest would come before all.
            await _accept(
                connection,
                redis,
                [
                    NewJob(
                        "probe",
                        {"sleep_s": 600.0},
                        concurrency_key="saturated",
                        priority=FIRST_PRIORITY,
                    )
                ]
                * waiting,
            )
            count = int(LATENCY_S * LATENCY_JOBS_PER_S * scale)
            jobs = range(WARM_UP_JOBS, WARM_UP_JOBS + count)
            await bed.produce(OURS, "idle", first=jobs.start, count=count, rate=LATENCY_JOBS_PER_S)
            await bed.settle(jobs)
    finally:
        await redis.aclose()
        await connection.close()
    waited_ms = bed.stamps.waited_ms(jobs, since="accepted")
    settings = {"waiting": waiting}
    return [
        Result(
            f"start latency beside a saturated key, p{percent}", OURS.name, value, "ms", settings
        )
        for percent in (50, 99)
        for value in [percentile(waited_ms, percent)]
    ]


async def measure_shutdowns(bed: Bed, scale: float) -> list[Result]:
    """SIGTERM under full load, again and again; every job ends well in the end."""
    await bed.clean(OURS)
    connection = await bed.look_at_ledger()
    redis = connect_redis(bed.settings(2))
    count, total, took_s = int(SHUTDOWNS * scale), 0, []
    try:
        for _ in range(count):
            await _accept(
                connection, redis, [NewJob("probe", {"sleep_s": WORK_S})] * JOBS_A_SHUTDOWN
            )
            total += JOBS_A_SHUTDOWN
            process = await bed.start_supervisor(2)
            await _wait_for_progress(connection)
            took_s.append(await _terminate(process))
        async with bed.workers(OURS, 2):
            await trial.drain(lambda: trial.sample(connection), jobs=total, slots=2)
        await trial.assert_recorded(connection, jobs=total)
        failures = int(await connection.fetchval(QUERIES["failed_attempts"]))
    finally:
        await redis.aclose()
        await connection.close()
    grace_s = bed.settings(2).grace_s
    settings = {"shutdowns": count}
    return [
        Result(
            "shutdowns inside the grace period",
            OURS.name,
            sum(seconds <= grace_s for seconds in took_s),
            f"of {count}",
            settings,
        ),
        Result("longest shutdown", OURS.name, max(took_s), "s", settings),
        Result("attempts failed by shutdowns", OURS.name, failures, "attempts", settings),
    ]


async def _wait_for_progress(connection: Connection) -> None:
    """Both slots have recorded something: they are in the middle of it."""
    before = (await trial.sample(connection)).total
    with anyio.fail_after(TAKES_PART_S):
        while True:
            if (await trial.sample(connection)).total > before + 500:
                return
            await anyio.sleep(0.02)


async def _terminate(process: Process) -> float:
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await process.wait()
    return time.monotonic() - began


async def _accept(connection: Connection, redis: Client, jobs: list[NewJob]) -> None:
    kinds = load_kinds(())
    for first in range(0, len(jobs), trial.JOBS_A_COMMIT):
        part = jobs[first : first + trial.JOBS_A_COMMIT]
        await trial.accept(connection, redis, kinds, part)
