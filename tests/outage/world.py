"""A stack whose servers belong to one test: an API and a worker that reach them over lines to cut.

The servers of the session must live, so these tests start their own.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import anyio
import asyncpg
import httpx
import psutil
from anyio.from_thread import BlockingPortal, start_blocking_portal
from redis.asyncio import Redis

from chaos.proxy import Proxy
from runtime.embedded import EmbeddedServers
from runtime.migrate import migrate
from runtime.settings import Settings, load_settings
from tests.api.live_server import ROOT, running

type ServerName = Literal["postgres", "valkey"]

# What the product promises of a request while Postgres is away, in seconds.
ANSWER_S = 5.0
# For what must happen at all; how soon is asserted only where it is promised.
EVENTUALLY_S = 40.0


@dataclass(slots=True)
class World:
    """The test's own servers, the lines to them, and the processes behind the lines."""

    home: Path
    servers: EmbeddedServers
    lines: "Lines"
    settings: Settings
    url: str = ""
    key: str = ""
    work: psutil.Process | None = None

    # -- the servers

    async def admin(self) -> "asyncpg.Connection[asyncpg.Record]":
        """A superuser's connection that no line leads to."""
        assert self.servers.postgres is not None
        parts = urlsplit(self.servers.postgres.admin_url)
        found: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            urlunsplit(parts._replace(path=urlsplit(str(self.servers.database_url)).path))
        )
        return found

    def redis(self) -> Redis:
        """A client that no line leads to."""
        client: Redis = Redis.from_url(str(self.servers.redis_url))
        return client

    async def kill(self, server: ServerName, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the signal to the server's main process, and return when it is gone."""
        process = psutil.Process(self.servers.pids[server])
        process.send_signal(number)
        await anyio.to_thread.run_sync(process.wait, 20)

    async def start_servers(self) -> None:
        """Start whatever is down, on its old port."""
        self.servers.leave()
        self.servers = EmbeddedServers(self.home)
        await self.servers.start()

    # -- the processes

    def slot_pids(self) -> set[int]:
        """The slots of the worker: one that is killed and started again has another pid."""
        assert self.work is not None
        return {child.pid for child in self.work.children() if "slot" in " ".join(child.cmdline())}

    @asynccontextmanager
    async def client(self, key: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as client:
            yield client

    async def submit(self, client: httpx.AsyncClient, count: int = 1, **payload: Any) -> list[str]:
        """Accepted jobs of the kind probe, one request each."""
        ids = []
        for _ in range(count):
            answer = await client.post("/v1/jobs", json={"kind": "probe", "payload": payload})
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["id"])
        return ids

    async def finished(
        self, client: httpx.AsyncClient, ids: list[str], within_s: float = EVENTUALLY_S
    ) -> list[dict[str, Any]]:
        """The jobs once all have succeeded."""
        return [await self._state(client, job_id, "succeeded", within_s) for job_id in ids]

    async def runs(self, client: httpx.AsyncClient, job_id: str) -> None:
        """Return once the job runs."""
        await self._state(client, job_id, "running", EVENTUALLY_S)

    async def _state(
        self, client: httpx.AsyncClient, job_id: str, state: str, within_s: float
    ) -> dict[str, Any]:
        with anyio.fail_after(within_s):
            while True:
                job: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
                if job["state"] == state:
                    return job
                await anyio.sleep(0.02)


@asynccontextmanager
async def world(home: Path, **environment: str) -> AsyncIterator[World]:
    """Servers, lines, an API and a worker of the pool `probe`; all of it gone at the end."""
    servers = EmbeddedServers(home)
    await servers.start()
    data_dir = home.with_name("data")
    data_dir.mkdir(mode=0o700)
    try:
        await migrate(str(servers.database_url))
        with start_blocking_portal() as portal:
            lines = Lines(portal)
            settings = load_settings(
                data_dir=data_dir,
                database_url=lines.lay("postgres", str(servers.database_url)),
                redis_url=lines.lay("valkey", str(servers.redis_url)),
            )
            own = World(home, servers, lines, settings)
            try:
                async with running(settings, **environment) as (own.url, own.key):
                    with _Work(settings, environment) as own.work:
                        async with own.client() as client:
                            # The slot is there: from here on it must not be another one.
                            await own.finished(client, await own.submit(client))
                        yield own
                        lines.heal("postgres")
                        lines.heal("valkey")
            finally:
                servers = own.servers
                lines.close()
    finally:
        await servers.stop()


class Lines:
    """The lines to the servers, in a thread of their own: they carry while a test's loop blocks."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._proxies: dict[ServerName, Proxy] = {}
        self._running: list[Future[None]] = []

    def lay(self, name: ServerName, address: str) -> str:
        """Lead a line to the server; its own address."""
        parts = urlsplit(address)
        proxy = Proxy(lambda: (str(parts.hostname), int(parts.port or 0)))
        future, _ = self._portal.start_task(proxy.run)
        self._proxies[name] = proxy
        self._running.append(future)
        return _through(address, proxy.port)

    def cut(self, name: ServerName) -> None:
        self._portal.call(self._proxies[name].line.cut)

    def delay(self, name: ServerName, seconds: float) -> None:
        self._proxies[name].line.delay_s = seconds

    def heal(self, name: ServerName) -> None:
        self._portal.call(self._proxies[name].line.heal)

    def close(self) -> None:
        for proxy in self._running:
            proxy.cancel()


def _through(address: str, port: int) -> str:
    parts = urlsplit(address)
    credentials = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))


class _Work:
    """`xnai work probe` for a block."""

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        values = {
            "XNAI_DATA_DIR": str(settings.data_dir),
            "XNAI_DATABASE_URL": str(settings.database_url),
            "XNAI_REDIS_URL": str(settings.redis_url),
            "XNAI_LOG_LEVEL": "warning",
            "XNAI_POOLS": "probe=1x1",
            **environment,
        }
        command = [sys.executable, "-m", "cli.roles", "work", "probe"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=os.environ | values)

    def __enter__(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
