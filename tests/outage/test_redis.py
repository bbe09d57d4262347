"""Redis is disposable: whatever becomes of it, jobs are accepted as fast, and end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncpg
import httpx
import pytest
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

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


async def unsaved(own: World) -> Callable[[], Awaitable[None]]:
    """A snapshot could not be written: every write is refused (MISCONF) until one can."""
    assert own.servers.valkey is not None
    folder = own.servers.valkey.folder
    mode = folder.stat().st_mode
    folder.chmod(0o500)
    async with own.redis() as redis:
        await redis.config_set("save", "3600 1")
        await redis.bgsave()
        with anyio.fail_after(EVENTUALLY_S):
            while (await redis.info("persistence"))["rdb_last_bgsave_status"] != "err":
                pass
        with pytest.raises(ResponseError, match="MISCONF"):
            await redis.set("nobodys", "1")

    async def heal() -> None:
        folder.chmod(mode)
        async with own.redis() as redis:
            await redis.config_set("save", "")

    return heal


async def test_jobs_are_accepted_and_end_whatever_redis_does(
    own: World, client: httpx.AsyncClient
) -> None:
    await accepts_and_ends(own, client)
    slots = own.slot_pids()
    for trouble in (cut, slow, full, read_only, unsaved):
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


@asynccontextmanager
async def loading(own: World, home: Path) -> AsyncIterator[None]:
    """In the place of the server one that reads a long log, slowly, and says so (LOADING)."""
    assert own.servers.valkey is not None
    (program, *_), _ = own.servers.valkey.command()
    home.mkdir()
    (home / "appendonly.aof").write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n" * 600_000)
    state = own.servers.valkey.state
    command = [
        str(program), "--bind", "127.0.0.1", "--port", str(state.valkey_port),
        "--requirepass", state.valkey_password, "--dir", str(home), "--appendonly", "yes",
        # Microseconds a key: minutes in all, and a thousand keys between two looks at clients.
        "--key-load-delay", "100", "--logfile", "valkey.log",
    ]  # fmt: skip
    await own.kill("valkey")
    async with await anyio.open_process(command, stdout=None) as process:
        try:
            await says_it_loads(own)
            yield
            await says_it_loads(own)
        finally:
            process.kill()
    await own.start_servers()


async def says_it_loads(own: World) -> None:
    with anyio.fail_after(EVENTUALLY_S):
        async with own.redis() as redis:
            while True:
                try:
                    await redis.get("a")
                except BusyLoadingError:
                    return
                except RedisConnectionError:
                    # Not even that yet.
                    await anyio.sleep(0.02)


async def test_while_it_loads_nobody_waits_for_it(
    own: World, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    slots = own.slot_pids()
    async with loading(own, tmp_path / "slow"):
        await accepts_and_ends(own, client)
        ready = (await client.get("/readyz")).json()
        assert (ready["status"], ready["dependencies"]["redis"]["status"]) == ("degraded", "down")
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
