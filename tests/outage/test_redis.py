"""Redis is disposable: whatever becomes of it, jobs are accepted as fast, and end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import asyncpg
import httpx
import pytest

from tests.outage.world import EVENTUALLY_S, Watch, World

pytestmark = [pytest.mark.anyio, pytest.mark.crash]

# Nothing that waits for Redis may hold back an answer; a second is what one brief try may take.
PROMPT_S = 1.0


async def accepts_and_ends(own: World, client: httpx.AsyncClient, jobs: int = 5) -> None:
    """Jobs are accepted and read without waiting for Redis, and end."""
    ids = []
    for _ in range(jobs):
        watch = Watch()
        ids += await own.submit(client)
        assert watch.seconds < PROMPT_S
    await own.finished(client, ids)


async def wakes_at_once(own: World, client: httpx.AsyncClient) -> None:
    """By itself, jobs start again as soon as they are accepted, not at the next poll."""
    with anyio.fail_after(EVENTUALLY_S):
        in_a_row = 0
        while in_a_row < 3:
            (job_id,) = await own.submit(client)
            await own.finished(client, [job_id])
            async with admin_of(own) as connection:
                waited_s = await connection.fetchval(
                    "SELECT extract(epoch FROM started_at - created_at) FROM history WHERE id = $1",
                    job_id,
                )
            in_a_row = in_a_row + 1 if waited_s < 0.25 else 0


@asynccontextmanager
async def admin_of(own: World) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await own.admin()
    try:
        yield connection
    finally:
        await connection.close()


async def cut(own: World) -> Callable[[], Awaitable[None]]:
    own.lines.cut("valkey")

    async def heal() -> None:
        own.lines.heal("valkey")

    return heal


async def slow(own: World) -> Callable[[], Awaitable[None]]:
    own.lines.delay("valkey", 0.4)

    async def heal() -> None:
        own.lines.heal("valkey")

    return heal


async def full(own: World) -> Callable[[], Awaitable[None]]:
    async with own.redis() as redis:
        await redis.config_set("maxmemory", 1)

    async def heal() -> None:
        async with own.redis() as redis:
            await redis.config_set("maxmemory", 0)

    return heal


async def read_only(own: World) -> Callable[[], Awaitable[None]]:
    async with own.redis() as redis:
        await redis.replicaof("127.0.0.1", "1")

    async def heal() -> None:
        async with own.redis() as redis:
            await redis.replicaof("NO", "ONE")

    return heal


async def test_jobs_are_accepted_and_end_whatever_redis_does(
    own: World, client: httpx.AsyncClient
) -> None:
    await accepts_and_ends(own, client)
    slots = own.slot_pids()
    for trouble in (cut, slow, full, read_only):
        heal = await trouble(own)
        await accepts_and_ends(own, client)
        await heal()
        await wakes_at_once(own, client)
    assert own.slot_pids() == slots


async def test_flushed_and_killed_it_loses_no_job(own: World, client: httpx.AsyncClient) -> None:
    await wakes_at_once(own, client)
    slots = own.slot_pids()
    (running,) = await own.submit(client, sleep_s=1.0)
    await own.runs(client, running)
    queued = await own.submit(client, 20)
    async with own.redis() as redis:
        await redis.flushall()
    await own.finished(client, [running, *queued])

    (running,) = await own.submit(client, sleep_s=1.0)
    await own.runs(client, running)
    await own.kill("valkey")
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"
    assert ready.json()["dependencies"]["redis"]["status"] == "down"
    await accepts_and_ends(own, client)
    await own.finished(client, [running])
    await own.start_servers()
    await wakes_at_once(own, client)
    assert own.slot_pids() == slots


async def test_streams_and_long_polls_look_by_themselves_and_are_nudged_again(
    own: World, client: httpx.AsyncClient
) -> None:
    await own.kill("valkey")
    (watched,) = await own.submit(client, sleep_s=1.0)
    types = [type_ async for type_ in event_types(client, f"/v1/jobs/{watched}/events")]
    assert types[-1] == "job.settled"
    body = {"kind": "probe", "payload": {"sleep_s": 0.5}}
    waited = await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})
    assert waited.status_code == 200
    assert waited.json()["state"] == "succeeded"
    await own.start_servers()
    await wakes_at_once(own, client)


async def event_types(client: httpx.AsyncClient, path: str) -> AsyncIterator[str]:
    async with client.stream("GET", path) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                yield line.removeprefix("event: ")
