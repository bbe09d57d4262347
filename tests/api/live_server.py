"""The API and the search role as processes of their own, as `xnai up` starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx

from runtime.settings import Settings

ROOT = Path(__file__).parents[2]
START_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Live:
    """The API's address, the admin key it wrote, and its process."""

    url: str
    key: str
    api: subprocess.Popen[bytes]


@asynccontextmanager
async def running(
    settings: Settings, *roles: str, **environment: str
) -> AsyncIterator[tuple[str, str]]:
    """Start the roles; yields the API's address and the admin key it wrote."""
    async with started(settings, *roles, **environment) as live:
        yield live.url, live.key


@asynccontextmanager
async def started(settings: Settings, *roles: str, **environment: str) -> AsyncIterator[Live]:
    """Start the roles, and end those that the block has left."""
    port = free_port()
    values = {
        "XNAI_DATA_DIR": str(settings.data_dir),
        "XNAI_DATABASE_URL": str(settings.database_url),
        "XNAI_REDIS_URL": str(settings.redis_url),
        "XNAI_PORT": str(port),
        "XNAI_LOG_LEVEL": "warning",
        **environment,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "cli.roles", role], cwd=ROOT, env=os.environ | values
        )
        for role in ("api", *roles)
    ]
    url = f"http://127.0.0.1:{port}"
    try:
        await _wait_ready(url, processes[0], whole=bool(roles))
        key = (settings.data_dir / "admin.key").read_text().strip()
        yield Live(url, key, processes[0])
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait(20) for process in processes]
    assert codes == [0] * len(processes), f"exit codes after SIGTERM: {codes}"


async def _wait_ready(url: str, api: subprocess.Popen[bytes], *, whole: bool) -> None:
    with anyio.fail_after(START_S):
        async with httpx.AsyncClient() as client:
            while True:
                assert api.poll() is None, "the API ended while it started"
                try:
                    status = (await client.get(f"{url}/readyz")).json()["status"]
                except httpx.TransportError:
                    status = "down"
                if status == "ok" or (status == "degraded" and not whole):
                    return
                await anyio.sleep(0.05)
