"""Where the search processes are, and the secret by which they know their callers.

A process announces itself and beats; who stops beating is not asked any more. No configuration.
"""

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from corpus.collections import QUERIES
from runtime.postgres import Connection, Pool

BEAT_S = 2.0
SILENT_AFTER_S = 10.0
SECRET_NAME = "search"  # noqa: S105 - the name of a row, not a secret
SERVERS_MAX = 16


@dataclass(frozen=True, slots=True)
class SearchServer:
    """A search process: `node_id` names the data directory that it works on."""

    id: UUID
    node_id: str
    url: str


def node_id(data_dir: Path) -> str:
    """Name the data directory of this machine: processes on it share index files."""
    return f"{socket.gethostname()}:{data_dir}"


async def register(
    connection: Connection | Pool, server: SearchServer, *, host: str, pid: int
) -> None:
    """Announce a process that listens."""
    await connection.execute(
        QUERIES["register_search_server"], server.id, server.node_id, server.url, host, pid
    )


async def beat(connection: Connection | Pool, server_id: UUID) -> bool:
    """Say that the process still answers; False when its row is gone and it must register again."""
    return await connection.fetchval(QUERIES["beat_search_server"], server_id) is not None


async def leave(connection: Connection | Pool, server_id: UUID) -> None:
    """Take a process off the list; idempotent."""
    await connection.execute(QUERIES["leave_search_server"], server_id)


async def live(connection: Connection | Pool, node_id: str) -> list[SearchServer]:
    """The processes that beat lately, those of `node_id` first."""
    rows = await connection.fetch(
        QUERIES["live_search_servers"], node_id, SILENT_AFTER_S, SERVERS_MAX
    )
    return [SearchServer(row["id"], row["node_id"], row["url"]) for row in rows]


async def secret(connection: Connection | Pool) -> str:
    """The secret of this installation's search processes, made by whoever asks first."""
    found: str | None = await connection.fetchval(QUERIES["read_secret"], SECRET_NAME)
    while found is None:
        await connection.execute(QUERIES["make_secret"], SECRET_NAME, secrets.token_urlsafe(32))
        found = await connection.fetchval(QUERIES["read_secret"], SECRET_NAME)
    return found
