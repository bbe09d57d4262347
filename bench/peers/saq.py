"""SAQ, on Redis or on Postgres by its address. Its documented bulk is `enqueue` in a gather."""

import asyncio

from saq import Job, Queue, Worker
from saq.types import Context

from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps

# As many enqueues at once as its queue lets through.
AT_ONCE = 100


def peer(order: Order, stamps: Stamps) -> Peer:
    """The peer of one process."""
    return _Saq(order, stamps)


class _Saq:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        settings = dict(order.settings)
        self._worker = settings.pop("worker", {})
        self._job_settings = settings.pop("job", {})
        self._queue = Queue.from_url(order.url, **settings)
        self._stamps = stamps

    async def open(self) -> None:
        await self._queue.connect()

    async def reset(self) -> None:
        # Makes the tables on Postgres; the harness has emptied the server.
        await self._queue.connect()

    async def enqueue(self, number: int) -> None:
        await self._queue.enqueue(Job("job", kwargs={"number": number}, **self._job_settings))

    async def enqueue_bulk(self, numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, AT_ONCE):
            part = range(first, min(numbers.stop, first + AT_ONCE))
            async with asyncio.TaskGroup() as group:
                for number in part:
                    group.create_task(self.enqueue(number))

    async def work(self) -> None:
        await self._queue.connect()
        worker = Worker(self._queue, functions=[("job", self._begin)], **self._worker)
        await worker.start()

    async def _begin(self, context: Context, *, number: int) -> None:
        del context
        if self._stamps.begin(number):
            await asyncio.Event().wait()
