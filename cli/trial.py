"""A ledger and slots to be measured: servers of their own in a folder that is thrown away.

`xnai bench` and the repository's `bench/` share it. It never touches the user's data directory, and
what it runs are the supervisor, the slots and the ledger of every stack.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import Process

from jobs import batches, dispatch, ledger
from jobs.kinds import KindRegistry
from jobs.model import DEFAULT_TENANT, NewJob
from runtime.embedded import EmbeddedServers
from runtime.errors import XnaiError
from runtime.migrate import migrate
from runtime.pools import PoolSpec
from runtime.postgres import Connection
from runtime.redis import Client
from runtime.settings import Settings, load_settings, to_environment
from runtime.sql import load_queries

QUERIES = load_queries("cli")

POOL = "probe"
# What one commit takes in: also the most that one statement of the ledger inserts.
JOBS_A_COMMIT = 5000
SAMPLE_S = 0.02
# Longer than the slowest start of a slot; a drain that stands still this long is stuck.
STUCK_S = 30.0
STOP_S = 15.0


class TrialError(XnaiError):
    """A measurement could not be made, or the ledger is not what it must be after it."""


def end_cleanly_on_sigterm() -> None:
    """Let SIGTERM end a measurement as Ctrl-C does, so that no server outlives it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@asynccontextmanager
async def throwaway_servers() -> AsyncIterator[EmbeddedServers]:
    """PostgreSQL and Valkey on free ports, with fsync, gone with their folder at the end."""
    folder = Path(tempfile.mkdtemp(prefix="xnai-bench-"))
    servers = EmbeddedServers(folder)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.stop()
        shutil.rmtree(folder, ignore_errors=True)


def trial_settings(
    servers: EmbeddedServers, *, slots: int, kinds: Iterable[str] = (), database_url: str = ""
) -> Settings:
    """Settings of a stack on these servers, whatever this user has set; only `probe` has slots."""
    return load_settings(
        data_dir=home_of(servers),
        database_url=database_url or servers.database_url,
        redis_url=servers.redis_url,
        pools={POOL: PoolSpec(slots=slots)},
        kinds=tuple(kinds),
        log_level="warning",
        log_format="json",
    )


def home_of(servers: EmbeddedServers) -> Path:
    """The folder of a trial's servers."""
    if servers.postgres is None:
        raise TrialError("a trial needs a PostgreSQL of its own")
    return servers.postgres.home.parent


async def make_ledger(settings: Settings) -> None:
    """Bring the trial's database to this version's schema."""
    await migrate(settings.database_url or "")


def clean_environment(settings: Settings) -> dict[str, str]:
    """The environment of the trial's processes: its settings instead of the user's."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("XNAI_")}
    metrics = settings.data_dir / "metrics"
    metrics.mkdir(exist_ok=True)
    # Counting costs something: the slots of `xnai up` count, so those of a trial do.
    return {**inherited, **to_environment(settings), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}


@asynccontextmanager
async def supervisor(settings: Settings) -> AsyncIterator[Process]:
    """The role `xnai work probe` for the length of a block; then drained as by SIGTERM."""
    process = await start_supervisor(settings)
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await stop_process(process)


async def start_supervisor(settings: Settings) -> Process:
    """Start the role; the caller stops it."""
    return await anyio.open_process(
        [sys.executable, "-m", "cli.roles", "work", POOL],
        stdin=None,
        stdout=None,
        stderr=None,
        env=clean_environment(settings),
        start_new_session=True,
    )


async def stop_process(process: Process) -> None:
    """SIGTERM, then SIGKILL; returns when it is gone."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    with anyio.move_on_after(STOP_S):
        await process.wait()
        return
    process.kill()
    await process.wait()


async def accept(
    connection: Connection, redis: Client, kinds: KindRegistry, jobs: Sequence[NewJob]
) -> None:
    """Enqueue one commit's worth of jobs in a batch of their own, then announce them."""
    async with connection.transaction():
        batch_id = await batches.create(connection, DEFAULT_TENANT, batches.NewBatch())
        accepted = await ledger.enqueue(
            connection, DEFAULT_TENANT, jobs, kinds=kinds, batch_id=batch_id
        )
    await dispatch.announce(redis, {accepted[0].pool: [job.id for job in accepted]})


@dataclass(frozen=True, slots=True)
class Sample:
    """How many jobs each slot had recorded, and when, in seconds of the monotonic clock."""

    at_s: float
    done: tuple[int, ...]

    @property
    def total(self) -> int:
        """Jobs recorded by all slots."""
        return sum(self.done)


async def sample(connection: Connection) -> Sample:
    """Look at the batches' counters: a few rows a slot, however many jobs there are."""
    rows = await connection.fetch(QUERIES["done_by_slot"])
    return Sample(time.monotonic(), tuple(row["done"] for row in rows))


@dataclass(frozen=True, slots=True)
class Drained:
    """A drain from the moment at which `slots` slots had recorded something to its last job."""

    jobs: int
    seconds: float
    slots: int

    @property
    def jobs_per_s(self) -> float:
        """The rate of the drain."""
        return self.jobs / self.seconds


async def drain(
    look: Callable[[], Awaitable[Sample]],
    *,
    jobs: int,
    slots: int,
    on_begin: Callable[[], Awaitable[None]] | None = None,
) -> Drained:
    """Look until all jobs are recorded; raises TrialError when nothing moves any more.

    The measured part begins once every slot has recorded something, so that their start is not part
    of it; where the jobs are gone before that, once the first has. `on_begin` is called then, and
    again when it begins anew.
    """
    first: Sample | None = None
    last = await look()
    moved_at = last.at_s
    while last.total < jobs:
        await anyio.sleep(SAMPLE_S)
        now = await look()
        if now.total > last.total:
            moved_at = now.at_s
        if now.at_s - moved_at > STUCK_S:
            raise TrialError(f"the drain stands still at {now.total} of {jobs} jobs")
        seen = 0 if first is None else len(first.done)
        if seen < min(len(now.done), slots) and now.total < jobs:
            first = now
            if on_begin is not None:
                await on_begin()
        last = now
    if first is None:
        raise TrialError(f"{jobs} jobs were gone before anybody looked: take more of them")
    return Drained(last.total - first.total, last.at_s - first.at_s, len(first.done))


async def assert_recorded(connection: Connection, *, jobs: int) -> None:
    """Every job is in the history once, succeeded and told by one event, and nothing is live.

    Raises TrialError, which says what is wrong: a rate of jobs that were not recorded is no rate.
    """
    row = await connection.fetchrow(QUERIES["drained_ledger"])
    found = {} if row is None else dict(row)
    expected = {
        "jobs": jobs,
        "distinct_jobs": jobs,
        "succeeded": jobs,
        "events": jobs,
        "distinct_events": jobs,
        "counted": jobs,
        "live": 0,
    }
    wrong = [
        f"{name} is {found.get(name)} instead of {count}"
        for name, count in expected.items()
        if found.get(name) != count
    ]
    if wrong:
        raise TrialError(f"the ledger is wrong after the drain: {', '.join(wrong)}")
