"""The test bed: one PostgreSQL and one Valkey for all systems, a fresh queue for each repetition,
and the processes that produce and run jobs.
"""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import anyio
import asyncpg
from anyio.abc import Process
from redis.asyncio import Redis

from bench import environments, kinds
from bench.measure import QUERIES
from bench.peers.driver import VARIABLE, Order
from bench.peers.stamps import Stamps
from bench.systems import OURS, System
from cli import trial
from runtime.embedded import EmbeddedServers
from runtime.embedded_postgres import ROLE
from runtime.postgres import connect
from runtime.settings import Settings

TEMPLATE = "bench_template"
JOBS_MAX = 600_000
LANE_JOBS_MAX = 1000
PRODUCE_MAX_S = 120.0
READY_MAX_S = 30.0
LAST_WORDS = 1500
SETTLE_S = 5.0
LOOK_S = 0.05


class BenchError(Exception):
    """A measurement failed; the message says which process, and what it said last."""


@dataclass(slots=True)
class Workers:
    """The worker processes of one system: one a worker, or our supervisor with its slots."""

    processes: list[Process]

    @property
    def pids(self) -> list[int]:
        """Their process ids, of those that live."""
        return [process.pid for process in self.processes if process.returncode is None]

    def kill(self, place: int) -> None:
        """SIGKILL one of them, with what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.processes[place].pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End them all, at once: what they leave is thrown away."""
        with anyio.CancelScope(shield=True):
            for place in range(len(self.processes)):
                self.kill(place)
            for process in self.processes:
                await process.wait()


@dataclass(slots=True)
class Bed:
    """Servers, the administrator's connections and the file of stamps."""

    servers: EmbeddedServers
    folder: Path
    admin: "asyncpg.Connection[asyncpg.Record]"
    redis: Redis
    stamps: Stamps
    # What several systems that run side by side may not share: a database in each server, and a
    # file of stamps.
    lane: int = 0
    _logs: int = field(default=0)

    @property
    def stamps_path(self) -> Path:
        """The file that all processes map."""
        return self.folder / f"stamps-{self.lane}"

    @property
    def server_pids(self) -> list[int]:
        """The main processes of both servers."""
        return list(self.servers.pids.values())

    def url(self, system: System) -> str:
        """The address of a system's own database."""
        return self.redis_url if system.server == "valkey" else self.database_url

    @property
    def database_url(self) -> str:
        """The database of this lane."""
        return _with_path(self.servers.database_url, self.database)

    @property
    def redis_url(self) -> str:
        """The logical database of this lane."""
        return _with_path(self.servers.redis_url, str(self.lane))

    @property
    def database(self) -> str:
        """The name of this lane's database."""
        return f"bench_{self.lane}"

    def settings(self, slots: int) -> Settings:
        """Our own stack's settings on these servers."""
        return trial.trial_settings(
            self.servers, slots=slots, kinds=("bench.kinds",), database_url=self.database_url
        ).model_copy(update={"redis_url": self.redis_url})

    async def clean(self, system: System) -> None:
        """Empty the lane, and let the system make its schema."""
        self.stamps.clear()
        await self.redis.flushdb()
        template = TEMPLATE if system is OURS else "template0"
        drop = await self.admin.fetchval(QUERIES["drop_database_statement"], self.database)
        await self.admin.execute(drop)
        create = await self.admin.fetchval(
            QUERIES["create_database_statement"], self.database, ROLE, template
        )
        await self.admin.execute(create)
        await self.admin.execute(QUERIES["checkpoint"])
        if system is not OURS:
            await self.produce(system, "reset")

    async def produce(
        self, system: System, role: str, *, kind: str = kinds.NAME, **order: float
    ) -> dict[str, float]:
        """Run a producer process to its end; what it measured. `kind` is of our own jobs."""
        process = await self._start(system, role, kind=kind, **order)
        with anyio.move_on_after(PRODUCE_MAX_S):
            output = b""
            if process.stdout is not None:
                async for part in process.stdout:
                    output += part
            if await process.wait() == 0:
                return dict(json.loads(output.splitlines()[-1]))
            raise BenchError(f"{system.name}: {role} failed: {self.last_words()}")
        process.kill()
        raise BenchError(f"{system.name}: {role} took more than {PRODUCE_MAX_S:.0f} s")

    @asynccontextmanager
    async def workers(self, system: System, count: int) -> AsyncIterator[Workers]:
        """Run that many workers of a system for the length of a block."""
        workers = Workers([])
        try:
            if system is OURS:
                workers.processes.append(await self.start_supervisor(count))
            else:
                for number in range(count):
                    workers.processes.append(await self._start(system, "work", worker=number))
            yield workers
        finally:
            await workers.stop()

    async def add_worker(self, system: System, workers: Workers) -> None:
        """Start one more, and return when it is about to ask for jobs."""
        number = len(workers.processes)
        if system is OURS:
            workers.processes.append(await self.start_supervisor(1))
            return
        workers.processes.append(await self._start(system, "work", worker=number))
        with anyio.fail_after(READY_MAX_S):
            while not self.stamps.is_ready(number):  # noqa: ASYNC110 - shared memory has no event
                await anyio.sleep(0.01)

    async def settle(self, jobs: range, still_s: float = SETTLE_S) -> bool:
        """Wait until all of them have begun, or none has for so long; whether all have."""
        moved_at, begun = time.monotonic(), -1
        while time.monotonic() - moved_at < still_s:
            now = sum(1 for number in jobs if self.stamps.started_ns(number))
            if now == len(jobs):
                return True
            if now != begun:
                moved_at, begun = time.monotonic(), now
            await anyio.sleep(LOOK_S)
        return False

    async def start_supervisor(self, slots: int) -> Process:
        """Our own workers; their handlers find the stamps by the environment."""
        os.environ[kinds.VARIABLE] = str(self.stamps_path)
        return await trial.start_supervisor(self.settings(slots))

    async def look_at_ledger(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection to our own ledger; the caller closes it."""
        return await connect(self.database_url, role="bench")

    async def analyze(self, system: System) -> None:
        """Give the planner the truth about what was just enqueued."""
        if system.server == "postgres":
            connection = await asyncpg.connect(self.database_url)
            try:
                await connection.execute(QUERIES["analyze"])
            finally:
                await connection.close()

    async def _start(
        self, system: System, role: str, *, kind: str = kinds.NAME, **order: float
    ) -> Process:
        settings: Mapping[str, object] = system.settings
        if system is OURS:
            python = Path(sys.executable)
            settings = {**settings, "redis_url": self.redis_url, "kind": kind}
        else:
            python = environments.interpreter(system.environment)
        encoded = Order(
            system.module,
            role,
            self.url(system),
            str(self.stamps_path),
            settings=dict(settings),
            **_typed(order),
        ).encode()
        self._logs += 1
        with self._log_path(self._logs).open("wb") as log:
            return await anyio.open_process(
                [python, "-m", "bench.peers.driver"],
                stdin=None,
                stdout=log if role == "work" else -1,
                stderr=log,
                cwd=environments.ROOT,
                env={**environments.clean_environment(), VARIABLE: encoded},
                start_new_session=True,
            )

    def last_words(self) -> str:
        """The end of what the process that was started last has said."""
        text = self._log_path(self._logs).read_text("utf-8", "replace").strip()
        return text[-LAST_WORDS:] or "it said nothing"

    def _log_path(self, number: int) -> Path:
        return self.folder / f"{self.lane}-{number}.log"


def _typed(order: Mapping[str, float]) -> dict[str, Any]:
    """Counts are whole numbers; rates and seconds are not."""
    return {
        name: value if name in {"rate", "seconds"} else int(value) for name, value in order.items()
    }


@asynccontextmanager
async def open_bed() -> AsyncIterator[Bed]:
    """Start the servers, make the ledger's template and the file of stamps; all gone at the end."""
    async with trial.throwaway_servers() as servers:
        await trial.make_ledger(trial.trial_settings(servers, slots=1))
        async with open_lane(servers, 0) as bed:
            await _make_template(bed.admin)
            # Rewriting the log in the middle of a drain would be charged to whoever runs then.
            await bed.redis.config_set("auto-aof-rewrite-percentage", 0)
            yield bed


@asynccontextmanager
async def open_lane(servers: EmbeddedServers, lane: int) -> AsyncIterator[Bed]:
    """A bed on the same servers beside others: for measurements that mostly wait."""
    if servers.postgres is None:
        raise BenchError("no PostgreSQL")
    admin = await asyncpg.connect(servers.postgres.admin_url)
    redis = Redis.from_url(_with_path(servers.redis_url, str(lane)))
    folder = trial.home_of(servers)
    stamps = Stamps.create(folder / f"stamps-{lane}", JOBS_MAX if lane == 0 else LANE_JOBS_MAX)
    try:
        yield Bed(servers, folder, admin, redis, stamps, lane)
    finally:
        await redis.aclose()
        await admin.close()
        stamps.close()


async def _make_template(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    statement = await admin.fetchval(
        QUERIES["create_database_statement"], TEMPLATE, ROLE, "xnai_foundation"
    )
    await admin.execute(statement)


def _with_path(url: str | None, path: str) -> str:
    if url is None:
        raise BenchError("the servers do not run")
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))
