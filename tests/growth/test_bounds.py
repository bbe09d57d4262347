"""What must not grow with the backlog or with the past."""

from datetime import UTC, datetime
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis

from jobs import dispatch, ledger, retention
from jobs.kinds import load_kinds
from jobs.live import TTL_S, LiveStream
from jobs.model import DEFAULT_TENANT, ClaimedJob, NewJob, SlotId, TenantId, Token
from runtime.ids import uuid7s
from runtime.postgres import Connection, Pool
from runtime.redis import Client

pytestmark = pytest.mark.anyio

MEGABYTE = 1024**2
LONG_AGO = datetime(2020, 2, 3, 12, tzinfo=UTC)


async def test_redis_holds_a_runway_however_deep_the_backlog(redis: Client) -> None:
    await dispatch.announce(redis, {"probe": uuid7s(1000)})
    before = (await redis.info("memory"))["used_memory"]
    for _ in range(100):
        await dispatch.announce(redis, {"probe": uuid7s(10_000)})
    after = (await redis.info("memory"))["used_memory"]
    assert await dispatch.waiting(redis, "probe") == dispatch.RUNWAY
    assert after - before < 16 * MEGABYTE
    assert await _shortest_lives(redis, "arq:job:*") <= dispatch.MESSAGE_TTL_MS / 1000


async def test_tokens_and_progress_have_an_end_of_life_from_their_first_moment(
    redis: Client,
) -> None:
    live, job = LiveStream(redis), _claimed()
    await live.token(job, "a")
    await live.progress(job, 1, 2, "half")
    assert 0 < await _shortest_lives(redis, "xnai:*") <= TTL_S


async def _shortest_lives(redis: Redis, pattern: str) -> float:
    """The longest time to live of the keys, in seconds; endless when one has none."""
    lives = [await redis.pttl(key) async for key in redis.scan_iter(pattern)]
    assert lives
    return float("inf") if -1 in lives else max(lives) / 1000


def _claimed() -> ClaimedJob:
    now = datetime.now(UTC)
    return ClaimedJob(
        uuid4(), DEFAULT_TENANT, "probe", "probe", {}, Token(1), 1, 3, 0, 0, None, now, None, None,
        (), False, SlotId(1), 0.0,
    )  # fmt: skip


async def test_dropping_a_day_waits_for_no_reader_and_lets_writers_pass(db: Pool) -> None:
    kinds = load_kinds()
    async with db.acquire() as connection, db.acquire() as reader, db.acquire() as writer:
        await retention.make_partitions(connection, days_ahead=2, now=LONG_AGO)
        async with reader.transaction():
            await reader.fetch("SELECT count(*) FROM history_20200203")
            async with anyio.create_task_group() as group:
                group.start_soon(_prune_in_vain, connection)
                with anyio.fail_after(5):
                    for _ in range(20):
                        job = NewJob("probe", {})
                        await ledger.enqueue(writer, TenantId(1), [job], kinds=kinds)
        pruned = await retention.prune(connection, days=7)
        assert "history_20200203" in pruned.partitions
        for parent in ("history", "attempts", "events"):
            assert await connection.fetchval("SELECT to_regclass($1)", f"{parent}_20200203") is None


async def _prune_in_vain(connection: Connection) -> None:
    pruned = await retention.prune(connection, days=7)
    assert "history_20200203" not in pruned.partitions
