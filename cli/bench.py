"""`xnai bench`: what the ledger does on this machine, on servers of its own that are then gone.

Never on the user's ledger. The comparison with other queues is the repository's `make bench-queue`.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib.resources import files
from itertools import batched
from math import ceil
from typing import Annotated
from uuid import UUID

import anyio
import typer

from cli import trial, trial_kind
from cli.output import AsJson, Meter, console, meter, print_json, print_table
from jobs import dispatch, ledger, lookup
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import DEFAULT_TENANT, Job, NewJob
from runtime.pools import core_count
from runtime.postgres import Connection, connect, database_url
from runtime.redis import Client
from runtime.redis import connect as connect_redis
from runtime.settings import Settings

WARM_UP_JOBS = 10
CLOCKED_JOBS = 200
CLOCKED_GAP_S = 0.02
CLOCKED_MAX_S = 15.0
LOOK_S = 0.05
SLOTS_MAX = 4
# The same measures on the machine of docs/benchmarks.md; `python -m bench.report` writes them.
REFERENCE = "bench_reference.json"

Jobs = Annotated[
    int, typer.Option("--jobs", min=1000, max=1_000_000, help="No-op jobs of each drain.")
]


@dataclass(frozen=True, slots=True)
class Measured:
    """One value, and the same of the machine of docs/benchmarks.md where that has it."""

    measure: str
    value: float
    unit: str
    reference: float | None = None
    system: str = "xnai"
    settings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """A ledger to be measured, and the connections of its producer."""

    settings: Settings
    connection: Connection
    redis: Client
    kinds: KindRegistry


def bench(*, jobs: Jobs = 20_000, as_json: AsJson = False) -> None:
    """Measure this machine in a minute: how fast jobs are accepted, run, and how soon they start.

    On servers of its own, in a folder that is removed at the end.
    """
    trial.end_cleanly_on_sigterm()
    with meter("starting servers", quiet=as_json) as progress:
        found = anyio.run(_measure, jobs, progress)
    if as_json:
        print_json([asdict(item) for item in found])
        return
    rows = (
        (item.measure, _digits(item.value), item.unit, _digits(item.reference)) for item in found
    )
    print_table(("measure", "here", "", "reference"), rows, empty="nothing was measured")
    console.print(
        f"\n[dim]{core_count()} cores here, two on the reference machine. fsync and synchronous "
        f"commit are on; {jobs:,} no-op jobs a drain.\ndocs/benchmarks.md has other queues beside "
        "it.[/]"
    )


async def _measure(jobs: int, progress: Meter) -> list[Measured]:
    """A ledger of its own for each drain, so that each begins like the others."""
    found: list[Measured] = []
    for slots in sorted({1, min(SLOTS_MAX, max(2, core_count()))}):
        progress.show(f"draining {jobs:,} jobs by {_slots(slots)}")
        async with _trial(slots) as own:
            accepted = await _enqueue(own, jobs)
            drained = await _drain(own, jobs, slots)
        found += [accepted, drained] if slots == 1 else [drained]
    progress.show("measuring how soon a job starts")
    async with _trial(1) as own:
        found += await _start_latency(own)
    return found


@asynccontextmanager
async def _trial(slots: int) -> AsyncIterator[Trial]:
    async with trial.throwaway_servers() as servers:
        settings = trial.trial_settings(servers, slots=slots, kinds=(trial_kind.__name__,))
        await trial.make_ledger(settings)
        connection = await connect(database_url(settings), role="bench")
        redis = connect_redis(settings)
        try:
            yield Trial(settings, connection, redis, load_kinds(settings.kinds))
        finally:
            await redis.aclose()
            await connection.close()


async def _enqueue(own: Trial, jobs: int) -> Measured:
    began = time.perf_counter()
    for part in batched((NewJob("probe", {}) for _ in range(jobs)), trial.JOBS_A_COMMIT):
        await trial.accept(own.connection, own.redis, own.kinds, part)
    return _measured("enqueue in bulk", jobs / (time.perf_counter() - began), "jobs/s")


async def _drain(own: Trial, jobs: int, slots: int) -> Measured:
    async with trial.supervisor(own.settings):
        look = partial(trial.sample, own.connection)
        drained = await trial.drain(look, jobs=jobs, slots=slots)
        await trial.assert_recorded(own.connection, jobs=jobs)
    return _measured(f"drain by {_slots(slots)}", drained.jobs_per_s, "jobs/s")


async def _start_latency(own: Trial) -> list[Measured]:
    """From each commit to its handler's first line, with nothing else to do."""
    async with trial.supervisor(own.settings):
        await _begun(own, await _clocked(own, WARM_UP_JOBS))
        committed = await _clocked(own, CLOCKED_JOBS)
        begun = await _begun(own, committed)
    waited_ms = sorted((begun[job_id] - at.after_ns) / 1e6 for job_id, at in committed.items())
    enqueueing_s = sum(at.after_ns - at.before_ns for at in committed.values()) / 1e9
    return [
        _measured("enqueue one by one", len(committed) / enqueueing_s, "jobs/s"),
        _measured("start latency, p50", waited_ms[len(waited_ms) // 2], "ms"),
        _measured("start latency, p99", waited_ms[ceil(len(waited_ms) * 0.99) - 1], "ms"),
    ]


@dataclass(frozen=True, slots=True)
class Committed:
    """When an enqueue was called and when its commit had returned."""

    before_ns: int
    after_ns: int


async def _clocked(own: Trial, count: int) -> dict[UUID, Committed]:
    """Enqueue jobs that tell when they began, each with a pause before it."""
    committed: dict[UUID, Committed] = {}
    for _ in range(count):
        await anyio.sleep(CLOCKED_GAP_S)
        before_ns = time.monotonic_ns()
        accepted = await ledger.enqueue(
            own.connection, DEFAULT_TENANT, [NewJob(trial_kind.NAME, {})], kinds=own.kinds
        )
        committed[accepted[0].id] = Committed(before_ns, time.monotonic_ns())
        await dispatch.announce(own.redis, {accepted[0].pool: [accepted[0].id]})
    return committed


async def _begun(own: Trial, committed: dict[UUID, Committed]) -> dict[UUID, int]:
    """When each of them began, by what it has told; raises TrialError for one that never did."""
    with anyio.move_on_after(CLOCKED_MAX_S):
        while True:
            found = await lookup.get_many(own.connection, DEFAULT_TENANT, list(committed))
            begun = {job.id: _began_ns(job) for job in found if job.result is not None}
            if len(begun) == len(committed):
                return begun
            await anyio.sleep(LOOK_S)
    raise trial.TrialError(f"some of {len(committed)} jobs did not end in {CLOCKED_MAX_S:.0f} s")


def _began_ns(job: Job) -> int:
    if isinstance(job.result, dict) and isinstance(began_ns := job.result.get("began_ns"), int):
        return began_ns
    raise trial.TrialError(f"job {job.id} does not say when it began: {job.result!r}")


def _measured(measure: str, value: float, unit: str) -> Measured:
    return Measured(measure, value, unit, _reference().get(measure))


@cache
def _reference() -> dict[str, float]:
    found: dict[str, float] = json.loads(files("cli").joinpath(REFERENCE).read_text("utf-8"))
    return found


def _slots(count: int) -> str:
    return f"{count} slot" if count == 1 else f"{count} slots"


def _digits(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
