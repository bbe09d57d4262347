"""streaq: Redis streams and Lua functions. Its bulk is `enqueue_many`, a pipeline."""

import asyncio

from streaq import Worker

from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps


def peer(order: Order, stamps: Stamps) -> Peer:
    """The peer of one process."""
    return _Streaq(order, stamps)


class _Streaq:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        settings = dict(order.settings)
        task = settings.pop("task", {})
        self._worker = Worker(redis_url=order.url, handle_signals=False, **settings)
        self._stamps = stamps
        self._job = self._worker.task(name="job", **task)(self._begin)

    async def open(self) -> None:
        await self._worker.__aenter__()

    async def reset(self) -> None:
        """The harness has emptied the server."""

    async def enqueue(self, number: int) -> None:
        await self._job.enqueue(number)

    async def enqueue_bulk(self, numbers: range) -> None:
        await self._worker.enqueue_many([self._job.enqueue(number) for number in numbers])

    async def work(self) -> None:
        await self._worker.run_async()

    async def _begin(self, number: int) -> None:
        if self._stamps.begin(number):
            await asyncio.Event().wait()
