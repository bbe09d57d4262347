"""What a thousand watchers of one API process cost while jobs end, and how late they are told.

They watch batches, jobs and the tenant, by streams and long polls; the jobs run in real slots, and
all of it shares the machine's cores.
"""

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from bench import environments
from bench.bed import BenchError
from bench.http import NAME, SETTLE_S, Running, open_stack
from bench.measure import QUERIES, CpuMeter, memory_bytes, percentile
from bench.results import Result
from bench.watchers_client import Order, Seen
from jobs import batches, dispatch, ledger
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import DEFAULT_TENANT, NewJob
from jobs.states import BatchState
from runtime import redis as runtime_redis
from runtime.postgres import Connection, connect
from runtime.redis import Client
from runtime.settings import load_settings

SECONDS = 20.0
JOBS_A_SECOND = 2000
TICK_S = 0.05
BATCHES = 100
STREAMS_A_BATCH = 4
JOB_STREAMS = 290
TENANT_STREAMS = 10
POLLS = 300
# A long poll goes on to another job so often.
POLLED_S = 2.0
FIRST_DUE_S = 5.0
READY_MAX_S = 60.0
DRAIN_MAX_S = 60.0
LOOK_S = 0.1
WATCHERS = BATCHES * STREAMS_A_BATCH + JOB_STREAMS + TENANT_STREAMS + POLLS


@dataclass(frozen=True, slots=True)
class Load:
    """Accepts jobs for the slots of a stack."""

    connection: Connection
    redis: Client
    kinds: KindRegistry

    async def open_batches(self) -> list[UUID]:
        """Batches that jobs are added to while they are watched."""
        return [
            await batches.create(self.connection, DEFAULT_TENANT, batches.NewBatch(BatchState.OPEN))
            for _ in range(BATCHES)
        ]

    async def accept(self, jobs: Sequence[NewJob], batch_id: UUID | None = None) -> list[str]:
        """Enqueue and announce; the ids."""
        async with self.connection.transaction():
            accepted = await ledger.enqueue(
                self.connection, DEFAULT_TENANT, jobs, kinds=self.kinds, batch_id=batch_id
            )
        ready = [job.id for job in accepted if job.state == "queued"]
        await dispatch.announce(self.redis, {accepted[0].pool: ready})
        return [str(job.id) for job in accepted]

    async def run(self, batch_ids: Sequence[UUID], seconds: float) -> None:
        """JOBS_A_SECOND, those of a tick to one batch, and to all batches in turn."""
        began, tick = time.monotonic(), 0
        jobs = [NewJob("probe", {})] * int(JOBS_A_SECOND * TICK_S)
        while (now := time.monotonic()) < began + seconds:
            await self.accept(jobs, batch_ids[tick % BATCHES])
            tick += 1
            await anyio.sleep(max(0.0, began + tick * TICK_S - now))


async def measure(scale: float) -> list[Result]:
    """On one stack, as `xnai up` runs it."""
    seconds = SECONDS * scale
    async with open_stack() as running, _load(running) as load:
        await anyio.sleep(SETTLE_S)
        api = running.stack.pids["api"]
        alone = memory_bytes(api)
        batch_ids = await load.open_batches()
        order = await _order(running, load, batch_ids, seconds)
        async with _watching(order) as watching:
            meter, began = CpuMeter([api]), time.monotonic()
            await load.run(batch_ids, seconds)
            ended = await _ended(load.connection, batch_ids)
            took_s = time.monotonic() - began
            spent, memory = meter.read(), memory_bytes(api)
            seen = await watching.stop()
        rate = sum(map(len, ended.values())) / took_s
    settings = {"watchers": WATCHERS, "jobs_per_s": JOBS_A_SECOND}
    delays = {
        "batch streams": _snapshot_ms(batch_ids, ended, seen),
        "job streams": seen.job_ms,
        "tenant streams": seen.tenant_ms,
        "long polls": seen.poll_ms,
    }
    return [
        Result("jobs that ended while watched", NAME, rate, "jobs/s", settings),
        Result("memory of the API before", NAME, alone / 2**20, "MiB", settings),
        Result("memory of the API, watched", NAME, memory / 2**20, "MiB", settings),
        Result("processor of the API", NAME, spent.own / took_s * 100, "% of a core", settings),
        *(
            Result(f"delay of {name}, p{percent}", NAME, percentile(ms, percent), "ms", settings)
            for name, ms in delays.items()
            for percent in (50, 99)
        ),
    ]


@asynccontextmanager
async def _load(running: Running) -> AsyncIterator[Load]:
    connection = await connect(running.stack.database_url, role="bench")
    redis = runtime_redis.connect(load_settings(redis_url=running.stack.redis_url))
    try:
        yield Load(connection, redis, load_kinds())
    finally:
        await redis.aclose()
        await connection.close()


async def _order(running: Running, load: Load, batch_ids: Sequence[UUID], seconds: float) -> Order:
    """Jobs that come due one after the other, for those who watch single ones."""
    due = running.order("watch")
    streams = [
        NewJob("probe", {}, delay_s=FIRST_DUE_S + seconds * n / JOB_STREAMS)
        for n in range(JOB_STREAMS)
    ]
    rounds = max(1, int(seconds / POLLED_S))
    polled = [
        NewJob("probe", {}, delay_s=FIRST_DUE_S + POLLED_S * (n // POLLS + n % POLLS / POLLS))
        for n in range(POLLS * rounds)
    ]
    ids = await load.accept(polled)
    return Order(
        due.host,
        due.port,
        running.key,
        [str(batch_id) for batch_id in batch_ids for _ in range(STREAMS_A_BATCH)],
        await load.accept(streams),
        TENANT_STREAMS,
        [ids[n::POLLS] for n in range(POLLS)],
    )


@dataclass(frozen=True, slots=True)
class _Watching:
    process: Process
    lines: TextReceiveStream

    async def ready(self) -> None:
        """All are connected."""
        with anyio.fail_after(READY_MAX_S):
            if await self.lines.receive() != "ready\n":
                raise BenchError("the watchers cannot connect")

    async def stop(self) -> Seen:
        """End them; what they saw."""
        if self.process.stdin is not None:
            await self.process.stdin.aclose()
        text = "".join([part async for part in self.lines])
        if await self.process.wait() != 0:
            raise BenchError("the watchers have failed: their error stands above")
        return Seen(**json.loads(text))


@asynccontextmanager
async def _watching(order: Order) -> AsyncIterator[_Watching]:
    process = await anyio.open_process(
        [sys.executable, "-m", "bench.watchers_client"],
        stderr=None,
        cwd=environments.ROOT,
        env=dict(os.environ),
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise BenchError("no pipes")
        await process.stdin.send(order.encode().encode() + b"\n")
        watching = _Watching(process, TextReceiveStream(process.stdout))
        await watching.ready()
        yield watching
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


async def _ended(connection: Connection, batch_ids: Sequence[UUID]) -> dict[UUID, list[float]]:
    """When each job of each batch ended, in order, once all have."""
    with anyio.fail_after(DRAIN_MAX_S):
        while await connection.fetchval(  # noqa: ASYNC110 - Postgres tells
            QUERIES["live_in_batches"], batch_ids
        ):
            await anyio.sleep(LOOK_S)
    await anyio.sleep(1.0)
    rows = await connection.fetch(QUERIES["ended_in_batches"], batch_ids)
    return {row["batch_id"]: row["ended"] for row in rows}


def _snapshot_ms(
    batch_ids: Sequence[UUID], ended: dict[UUID, list[float]], seen: Seen
) -> list[float]:
    """For each end of a job and each watcher of its batch: until a snapshot counted it."""
    found: list[float] = []
    for place, snapshots in enumerate(seen.snapshots):
        times = ended[batch_ids[place // STREAMS_A_BATCH]]
        counted = 0
        for came, count in snapshots:
            found += [1000 * (came - at) for at in times[counted:count]]
            counted = max(counted, count)
    return found
