"""Our own figures through HTTP, on a stack as `xnai up` runs it; its clients share the cores."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import psutil
from anyio.abc import Process

from bench import environments, kinds
from bench.bed import BenchError
from bench.http_client import VARIABLE, HttpOrder
from bench.measure import memory_bytes, percentile
from bench.peers.stamps import Stamps
from bench.results import Result
from cli import trial
from runtime.postgres import Connection, connect
from runtime.stack import LocalStack, read_stack

START_MAX_S = 90.0
BATCH_JOBS = 100_000
CONNECTIONS = 100
HAMMER_S = 10.0
IDLE_JOBS = 200
IDLE_CPU_S = 60.0
SETTLE_S = 3.0
LOOK_S = 0.02
DRAIN_MAX_S = 120.0
NAME = "xnai"


@dataclass(frozen=True, slots=True)
class Running:
    """A stack that answers."""

    folder: Path
    process: Process
    stack: LocalStack
    key: str
    stamps: Stamps

    def order(self, role: str, **fields: float) -> HttpOrder:
        """An order for the client."""
        address = urlsplit(self.stack.api_url or "")
        whole = {name: int(value) for name, value in fields.items() if name != "seconds"}
        return HttpOrder(
            role,
            address.hostname or "",
            address.port or 0,
            self.key,
            stamps=str(self.folder / "stamps"),
            seconds=fields.get("seconds", 0.0),
            **whole,
        )

    def processes(self) -> list[int]:
        """Every process of the stack, its servers included."""
        found = {self.process.pid}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.folder) in process.cwd():
                    found.add(process.pid)
        found.update(
            child.pid for child in psutil.Process(self.process.pid).children(recursive=True)
        )
        return sorted(found)


@asynccontextmanager
async def open_stack() -> AsyncIterator[Running]:
    """`xnai up` in a folder of its own; drained at the end."""
    with tempfile.TemporaryDirectory(prefix="xnai-bench-") as name:
        folder = Path(name)
        stamps = Stamps.create(folder / "stamps", BATCH_JOBS)
        process = await anyio.open_process(
            [sys.executable, "-m", "cli.main", "up", "--port", "0"],
            stdin=None,
            stdout=None,
            stderr=subprocess.DEVNULL,
            cwd=environments.ROOT,
            env={
                **environments.clean_environment(),
                "XNAI_DATA_DIR": str(folder),
                "XNAI_KINDS": kinds.__name__,
                "XNAI_LOG_LEVEL": "warning",
                kinds.VARIABLE: str(folder / "stamps"),
            },
        )
        try:
            with anyio.fail_after(START_MAX_S):
                stack = None
                while stack is None:
                    await anyio.sleep(0.1)
                    stack = read_stack(folder)
            key = (folder / "admin.key").read_text("ascii").strip()
            yield Running(folder, process, stack, key, stamps)
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await process.wait()
            stamps.close()


async def measure(scale: float) -> list[Result]:
    """All of them, on one stack."""
    async with open_stack() as running:
        await anyio.sleep(SETTLE_S)
        return [
            *await _idle_cpu(running, IDLE_CPU_S * scale),
            *await _start_latency(running, int(IDLE_JOBS * scale)),
            *await _hammer(running, HAMMER_S * scale),
            *await _batch(running, int(BATCH_JOBS * scale)),
        ]


async def _idle_cpu(running: Running, seconds: float) -> list[Result]:
    pids = running.processes()
    before = sum(_own_cpu(pid) for pid in pids)
    await anyio.sleep(seconds)
    spent = sum(_own_cpu(pid) for pid in pids) - before
    return [Result("idle processor time of the stack", NAME, spent / seconds * 100, "% of a core")]


def _own_cpu(pid: int) -> float:
    with suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


async def _start_latency(running: Running, count: int) -> list[Result]:
    await _client(running.order("idle", count=10))
    await _client(running.order("idle", first=10, count=count))
    await anyio.sleep(SETTLE_S)
    waited_ms = running.stamps.waited_ms(range(10, 10 + count), since="accepted")
    if len(waited_ms) < count:
        raise BenchError(f"only {len(waited_ms)} of {count} jobs have begun")
    return [
        Result(f"start latency after POST, p{p}", NAME, percentile(waited_ms, p), "ms")
        for p in (50, 99)
    ]


async def _hammer(running: Running, seconds: float) -> list[Result]:
    found = await _client(running.order("hammer", connections=CONNECTIONS, seconds=seconds))
    settings = {"clients": CONNECTIONS}
    return [
        Result("POST /v1/jobs", NAME, found["requests_per_s"], "requests/s", settings),
        Result("POST /v1/jobs, p50", NAME, found["p50_ms"], "ms", settings),
        Result("POST /v1/jobs, p99", NAME, found["p99_ms"], "ms", settings),
    ]


async def _batch(running: Running, jobs: int) -> list[Result]:
    """One NDJSON batch: how fast, at what memory, and how soon its first job is done."""
    connection = await connect(running.stack.database_url, role="bench")
    api = running.stack.pids["api"]
    peak = 0
    found: dict[str, float] = {}
    try:
        before = (await _drained(connection)).total

        async def upload() -> None:
            found.update(await _client(running.order("upload", count=jobs)))

        async with anyio.create_task_group() as group:
            group.start_soon(upload)
            while not found:
                peak = max(peak, memory_bytes(api))
                await anyio.sleep(LOOK_S)
        first_s = await _first_after(connection, before, found["answered_ns"])
    finally:
        await connection.close()
    settings = {"jobs": jobs}
    return [
        Result("NDJSON batch", NAME, jobs / found["seconds"], "jobs/s", settings),
        Result("NDJSON batch, first job done", NAME, first_s, "s", settings),
        Result("NDJSON batch, memory of the API", NAME, peak / 2**20, "MiB", settings),
        Result("GET /v1/jobs/{id} meanwhile, p99", NAME, found["get_p99_ms"], "ms", settings),
    ]


async def _drained(connection: Connection) -> trial.Sample:
    """Wait until the jobs of the measurement before are all recorded."""
    with anyio.fail_after(DRAIN_MAX_S):
        last = await trial.sample(connection)
        while True:
            await anyio.sleep(1)
            now = await trial.sample(connection)
            if now.total == last.total:
                return now
            last = now


async def _first_after(connection: Connection, before: int, answered_ns: float) -> float:
    """Seconds from the answer, which follows the commit, to the first job that is recorded."""
    with anyio.fail_after(DRAIN_MAX_S):
        while True:
            if (await trial.sample(connection)).total > before:
                break
            await anyio.sleep(LOOK_S)
    return max(0.0, (time.monotonic_ns() - answered_ns) / 1e9)


async def _client(order: HttpOrder) -> dict[str, float]:
    done = await anyio.run_process(
        [sys.executable, "-m", "bench.http_client"],
        check=False,
        cwd=environments.ROOT,
        env={**os.environ, VARIABLE: order.encode()},
    )
    if done.returncode != 0:
        raise BenchError(f"{order.role}: {done.stderr.decode()[-1500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
