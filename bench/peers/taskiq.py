"""taskiq on Redis streams, with its results stored or not. It has no bulk enqueue."""

import asyncio

from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps


def peer(order: Order, stamps: Stamps) -> Peer:
    """The peer of one process."""
    return _Taskiq(order, stamps)


class _Taskiq:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        settings = dict(order.settings)
        keeps_results = settings.pop("result_backend", False)
        self._receiver = settings.pop("receiver", {})
        # From the first message on, so that what was enqueued before the worker began is seen.
        broker = RedisStreamBroker(order.url, consumer_id="0", **settings)
        if keeps_results:
            broker = broker.with_result_backend(
                RedisAsyncResultBackend(order.url, result_ex_time=3600)
            )
        self._broker = broker

        @broker.task(task_name="job")  # type: ignore[untyped-decorator] # no types without taskiq
        async def job(number: int) -> None:
            if stamps.begin(number):
                await asyncio.Event().wait()

        self._job = job

    async def open(self) -> None:
        await self._broker.startup()

    async def reset(self) -> None:
        """The harness has emptied the server."""

    async def enqueue(self, number: int) -> None:
        await self._job.kiq(number)

    async def enqueue_bulk(self, numbers: range) -> None:
        for number in numbers:
            await self.enqueue(number)

    async def work(self) -> None:
        await run_receiver_task(self._broker, run_startup=True, **self._receiver)
