"""The embedded servers of a data directory: both started, kept alive and stopped together.

Used where no XNAI_DATABASE_URL or XNAI_REDIS_URL is set; see docs/decisions/0003.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio

from runtime.embedded_postgres import Postgres
from runtime.embedded_valkey import Valkey
from runtime.files import private_folder
from runtime.server_process import ServerProcess

type ServerName = Literal["postgres", "valkey"]


class EmbeddedServers:
    """PostgreSQL and Valkey, or one of them, of one data directory."""

    def __init__(
        self, data_dir: Path, servers: Sequence[ServerName] = ("postgres", "valkey")
    ) -> None:
        home = private_folder(data_dir)
        self.postgres = Postgres(home) if "postgres" in servers else None
        self.valkey = Valkey(home) if "valkey" in servers else None
        self._processes = [
            ServerProcess(server, home) for server in (self.postgres, self.valkey) if server
        ]

    @property
    def database_url(self) -> str | None:
        """Address of the database, as its owner."""
        return self.postgres.url if self.postgres else None

    @property
    def redis_url(self) -> str | None:
        """Address of Valkey's database 0."""
        return self.valkey.url if self.valkey else None

    @property
    def pids(self) -> dict[str, int]:
        """The main process of each server that runs now."""
        return {item.server.name: item.pid for item in self._processes if item.pid is not None}

    async def start(self) -> None:
        """Return when all of them answer; servers that a killed launcher left are adopted."""
        for process in self._processes:
            await process.start()

    async def keep(self) -> None:
        """Restart whichever dies, with its old address; runs until cancelled."""
        async with anyio.create_task_group() as group:
            for process in self._processes:
                group.start_soon(process.keep)

    async def stop(self) -> None:
        """Shut them down, fast but clean; cancel `keep` first. Idempotent."""
        with anyio.CancelScope(shield=True):
            for process in reversed(self._processes):
                await process.stop()

    def leave(self) -> None:
        """Let them outlive this process, for another launcher to adopt."""
        for process in self._processes:
            process.leave()

    async def stop_left_over(self) -> None:
        """Stop servers that another, dead launcher left; starts none."""
        for process in reversed(self._processes):
            await process.stop_left_over()


@asynccontextmanager
async def embedded_servers(
    data_dir: Path, servers: Sequence[ServerName] = ("postgres", "valkey")
) -> AsyncIterator[EmbeddedServers]:
    """Run the embedded servers for the length of a block; a SIGKILL leaves them for adoption."""
    embedded = EmbeddedServers(data_dir, servers)
    try:
        await embedded.start()
        yield embedded
    finally:
        await embedded.stop()
