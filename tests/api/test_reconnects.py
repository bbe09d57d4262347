"""A watcher that loses its connection again and again, to one API process or the other, is told
everything once and in order.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest

from jobs import events
from jobs.events import EventScope
from jobs.live import LiveStream
from jobs.model import DEFAULT_TENANT, ClaimedJob
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.api.live_server import running
from tests.api.slot import register
from tests.api.test_events import stream

pytestmark = pytest.mark.anyio

CONNECTIONS = 50
RESTART_AT = 25
JOBS = 120
IN_TIME_S = 120.0


@dataclass(slots=True)
class Watching:
    """One stream as its reader knows it."""

    path: str
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def read(self, client: httpx.AsyncClient) -> AsyncGenerator[dict[str, Any]]:
        """Go on after the last event."""
        last_id = self.seen[-1]["id"] if self.seen else None
        async with stream(client, self.path, last_id) as told:
            async for event in told:
                self.seen.append(event)
                yield event

    async def read_some(self, client: httpx.AsyncClient, count: int) -> None:
        """So many events more; the connection ends in the middle of the stream."""
        async with aclosing(self.read(client)) as reading:
            for _ in range(count):
                await anext(reading)

    async def read_until(self, client: httpx.AsyncClient, succeeded: int) -> None:
        """Until a snapshot counts so many, unless the last one did."""
        if self.seen and self.succeeded == succeeded:
            return
        async with aclosing(self.read(client)) as reading:
            while not self.seen or self.succeeded != succeeded:
                await anext(reading)

    @property
    def succeeded(self) -> int:
        """What the last snapshot counts."""
        return int(self.seen[-1]["data"]["counts"]["succeeded"])


async def test_fifty_reconnects_to_two_processes_and_a_restart_skip_and_repeat_nothing(
    settings: Settings, db: Pool, redis: Client
) -> None:
    rng = random.Random(50)
    slot = await register(db, LiveStream(redis), "probe")
    with anyio.fail_after(IN_TIME_S):
        async with AsyncExitStack() as processes:
            other = await processes.enter_async_context(_client(settings))
            restarted = AsyncExitStack()
            one = await restarted.enter_async_context(_client(settings))
            batch_id = await _submit(one)
            claimed = await slot.claim()
            ended: list[ClaimedJob] = []
            told = Watching(f"/v1/events?batch_id={batch_id}")
            counted = Watching(f"/v1/batches/{batch_id}/events")
            for connection in range(CONNECTIONS):
                if connection == RESTART_AT:
                    await restarted.aclose()
                    one = await processes.enter_async_context(_client(settings))
                client = rng.choice((one, other))
                group = claimed[len(ended) : len(ended) + rng.randint(0, 4)]
                async with anyio.create_task_group() as tasks:
                    # Ended while the reader reads, or has just lost its connection.
                    tasks.start_soon(slot.end, group)
                    ended += group
                    await told.read_some(client, rng.randint(0, 2 * len(ended) - len(told.seen)))
                    if rng.random() < 0.5:
                        await counted.read_until(client, len(ended))
            await slot.end(claimed[len(ended) :])
            async for _ in counted.read(other):
                pass
            _assert_snapshots_add_up(counted.seen)
            await told.read_some(one, 2 * JOBS + 1 - len(told.seen))
    await _assert_as_in_the_ledger(db, batch_id, told.seen)


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API process of its own, and a client of it."""
    async with running(settings) as (url, key):
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
            yield client


async def _submit(client: httpx.AsyncClient) -> UUID:
    jobs = [{"kind": "probe", "payload": {}}] * JOBS
    return UUID((await client.post("/v1/batches", json={"jobs": jobs})).json()["id"])


def _assert_snapshots_add_up(snapshots: list[dict[str, Any]]) -> None:
    ids = [snapshot["id"] for snapshot in snapshots]
    assert len(set(ids)) == len(ids)
    succeeded = [snapshot["data"]["counts"]["succeeded"] for snapshot in snapshots]
    assert succeeded == sorted(succeeded)
    for snapshot in snapshots:
        counts = dict(snapshot["data"]["counts"])
        assert counts.pop("total") == sum(counts.values()) == JOBS
    assert [s["event"] for s in snapshots].index("batch.finished") == len(snapshots) - 1


async def _assert_as_in_the_ledger(db: Pool, batch_id: UUID, seen: list[dict[str, Any]]) -> None:
    async with db.acquire() as connection:
        scope = EventScope(DEFAULT_TENANT, batch_id)
        kept = await events.after(connection, scope, None, 10 * JOBS)
    assert len(kept) == 2 * JOBS + 1
    assert [(event["id"], event["event"]) for event in seen] == [(e.cursor, e.type) for e in kept]
