"""Faults of PostgreSQL and Valkey themselves: emptied, shut down, restarted, refusing."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
from redis.asyncio import Redis

from chaos.plan import Fault, Step
from chaos.scene import CannotInject, Scene, Way
from runtime.sql import load_queries

REDIS_TIMEOUT_S = 2.0

QUERIES = load_queries("chaos", "runs")
# Either makes every write an error, while reads go on.
_REFUSALS = (("maxmemory", "1"), ("min-replicas-to-write", "1"))


@asynccontextmanager
async def _valkey(scene: Scene) -> AsyncIterator[Redis]:
    if scene.redis_down:
        raise CannotInject("Valkey is down already")
    client: Redis = Redis.from_url(
        scene.stack.servers.valkey.url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
    )
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def redis_flush(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Forget everything at once."""
    del step
    async with _valkey(scene) as client:
        keys = await client.dbsize()
        await client.flushall()
    yield f"{keys} keys"


@asynccontextmanager
async def redis_down(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Shut down for a while; for good means that it comes back empty, when all faults are over."""
    valkey = scene.stack.servers.valkey
    scene.redis_down += 1
    try:
        await valkey.shut_down()
        yield "valkey"
    finally:
        scene.redis_down -= 1
        if not scene.redis_down:
            await valkey.bring_back()
    if step.fault is Fault.REDIS_GONE:
        async with _valkey(scene) as client:
            await client.flushall()


@asynccontextmanager
async def redis_refuses(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Answer every write with an error; a server that is restarted meanwhile forgets it."""
    name, value = _REFUSALS[int(step.pick * len(_REFUSALS))]
    async with _valkey(scene) as client:
        await client.config_set(name, value)
    try:
        yield f"{name} {value}"
    finally:
        if not scene.redis_down:
            await accept_writes(scene)


async def accept_writes(scene: Scene) -> None:
    """Refuse nothing any more."""
    async with _valkey(scene) as client:
        for name, _ in _REFUSALS:
            await client.config_set(name, "0")


@asynccontextmanager
async def postgres_restart(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Fast ends every connection and writes a checkpoint; immediate recovers at the next start."""
    pid = scene.stack.servers.postgres.pid
    if pid is None:
        raise CannotInject("PostgreSQL is down already")
    is_fast = step.fault is Fault.POSTGRES_RESTART
    psutil.Process(pid).send_signal(signal.SIGINT if is_fast else signal.SIGQUIT)
    yield f"pid {pid}"


@asynccontextmanager
async def postgres_backends(scene: Scene, step: Step) -> AsyncIterator[str]:
    """End every connection of the product's from inside the server."""
    del step
    async with scene.stack.database() as connection:
        ended = await connection.fetchval(QUERIES["terminate_backends"])
    yield f"{ended} connections"


WAYS: dict[Fault, Way] = {
    Fault.REDIS_FLUSH: redis_flush,
    Fault.REDIS_DOWN: redis_down,
    Fault.REDIS_GONE: redis_down,
    Fault.REDIS_REFUSES: redis_refuses,
    Fault.POSTGRES_RESTART: postgres_restart,
    Fault.POSTGRES_CRASH: postgres_restart,
    Fault.POSTGRES_BACKENDS: postgres_backends,
}
