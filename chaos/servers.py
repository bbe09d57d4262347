"""The servers of a chaos run and the lines to them: PostgreSQL and Valkey, each behind proxies.

Each server is kept alive as `xnai up` keeps it, unless a fault has it down on purpose.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio.abc import TaskGroup

from chaos.proxy import Proxy
from runtime.embedded import EmbeddedServers, ServerName


class Kept:
    """One embedded server: restarted when it dies, except between `shut_down` and `bring_back`."""

    def __init__(self, data_dir: Path, name: ServerName, group: TaskGroup) -> None:
        self.name = name
        self.servers = EmbeddedServers(data_dir, [name])
        self._group = group
        self._keeping: anyio.CancelScope | None = None
        self._let_go = anyio.Event()

    @property
    def url(self) -> str:
        """The server's own address, past every proxy."""
        url = self.servers.database_url if self.name == "postgres" else self.servers.redis_url
        if url is None:
            message = f"no embedded {self.name} was asked for"
            raise ValueError(message)
        return url

    @property
    def pid(self) -> int | None:
        """The main process, if it lives."""
        return self.servers.pids.get(self.name)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server itself."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 0

    async def bring_back(self) -> None:
        """Start it, or return at once when it runs, and keep it alive from now on."""
        if self._keeping is None:
            await self.servers.start()
            self._keeping, self._let_go = anyio.CancelScope(), anyio.Event()
            self._group.start_soon(self._keep, self._keeping)

    async def shut_down(self) -> None:
        """Stop it, and leave it stopped."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
            await self._let_go.wait()
        await self.servers.stop()
        # A restart that was cut short has left a server that nobody holds.
        await self.servers.stop_left_over()

    async def _keep(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await self.servers.keep()
        finally:
            self._let_go.set()


@dataclass(slots=True)
class Host:
    """One host's lines to both servers."""

    name: str
    postgres: Proxy
    valkey: Proxy

    @property
    def lines(self) -> tuple[Proxy, Proxy]:
        """Both of them."""
        return self.postgres, self.valkey


@dataclass(slots=True)
class Servers:
    """Both servers, and the hosts' lines to them."""

    postgres: Kept
    valkey: Kept
    hosts: list[Host] = field(default_factory=list)

    async def add_host(self, name: str, group: TaskGroup) -> Host:
        """Open lines for one more host."""
        host = Host(name, Proxy(lambda: self.postgres.address), Proxy(lambda: self.valkey.address))
        for proxy in host.lines:
            await group.start(proxy.run)
        self.hosts.append(host)
        return host

    def environment(self, host: Host) -> dict[str, str]:
        """The settings by which a host's roles take its lines."""
        return {
            "XNAI_DATABASE_URL": _through(self.postgres.url, host.postgres.port),
            "XNAI_REDIS_URL": _through(self.valkey.url, host.valkey.port),
        }


@asynccontextmanager
async def run_servers(data_dir: Path) -> AsyncIterator[Servers]:
    """Run both servers for the length of a block, whatever was done to them meanwhile."""
    async with anyio.create_task_group() as group:
        servers = Servers(Kept(data_dir, "postgres", group), Kept(data_dir, "valkey", group))
        try:
            await servers.postgres.bring_back()
            await servers.valkey.bring_back()
            yield servers
        finally:
            with anyio.CancelScope(shield=True):
                await servers.valkey.shut_down()
                await servers.postgres.shut_down()
            group.cancel_scope.cancel()


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
