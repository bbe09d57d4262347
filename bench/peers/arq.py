"""arq: a Redis sorted set that its worker polls. Its documentation has no bulk; a pipeline by hand
is not its API.
"""

import asyncio
from typing import Any

from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import Worker, func

from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps


def peer(order: Order, stamps: Stamps) -> Peer:
    """The peer of one process."""
    return _Arq(order, stamps)


class _Arq:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        self._server = RedisSettings.from_dsn(order.url)
        self._settings = order.settings
        self._stamps = stamps
        self._redis: ArqRedis

    async def open(self) -> None:
        self._redis = await create_pool(self._server)

    async def reset(self) -> None:
        """The harness has emptied the server."""

    async def enqueue(self, number: int) -> None:
        await self._redis.enqueue_job("job", number)

    async def enqueue_bulk(self, numbers: range) -> None:
        for number in numbers:
            await self.enqueue(number)

    async def work(self) -> None:
        worker = Worker(
            functions=[func(self._job, name="job")],  # type: ignore[arg-type] # it asks for *args
            redis_settings=self._server,
            handle_signals=False,
            **self._settings,
        )
        await worker.async_run()

    async def _job(self, context: dict[Any, Any], number: int) -> None:  # arq's own type
        del context
        if self._stamps.begin(number):
            await asyncio.Event().wait()
