"""PgQueuer: Postgres, jobs claimed in batches, results logged in batches."""

import asyncio

import asyncpg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps


def peer(order: Order, stamps: Stamps) -> Peer:
    """The peer of one process."""
    return _PgQueuer(order, stamps)


class _PgQueuer:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        self._url = order.url
        self._settings = order.settings
        self._stamps = stamps
        self._queries: Queries

    async def open(self) -> None:
        self._queries = Queries(AsyncpgDriver(await asyncpg.connect(self._url)))

    async def reset(self) -> None:
        await self.open()
        await self._queries.install()

    async def enqueue(self, number: int) -> None:
        await self._queries.enqueue("job", str(number).encode())

    async def enqueue_bulk(self, numbers: range) -> None:
        await self._queries.enqueue(
            ["job"] * len(numbers),
            [str(number).encode() for number in numbers],
            [0] * len(numbers),
        )

    async def work(self) -> None:
        await self.open()
        manager = QueueManager(self._queries)
        manager.entrypoint("job")(self._begin)
        await manager.run(**self._settings)

    async def _begin(self, job: Job) -> None:
        if self._stamps.begin(int(job.payload or b"")):
            await asyncio.Event().wait()
