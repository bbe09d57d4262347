"""procrastinate: Postgres, one statement a job, LISTEN to be woken."""

import asyncio

import procrastinate

from bench.peers.driver import Order, Peer
from bench.peers.stamps import Stamps


def peer(order: Order, stamps: Stamps) -> Peer:
    """The peer of one process."""
    return _Procrastinate(order, stamps)


class _Procrastinate:
    def __init__(self, order: Order, stamps: Stamps) -> None:
        settings = dict(order.settings)
        self._worker = settings.pop("worker", {})
        connector = procrastinate.PsycopgConnector(conninfo=order.url, **settings)
        self._app = procrastinate.App(connector=connector)
        self._stamps = stamps
        self._job = self._app.task(name="job")(self._begin)

    async def open(self) -> None:
        await self._app.open_async()

    async def reset(self) -> None:
        async with self._app.open_async():
            await self._app.schema_manager.apply_schema_async()

    async def enqueue(self, number: int) -> None:
        await self._job.defer_async(number=number)

    async def enqueue_bulk(self, numbers: range) -> None:
        await self._job.batch_defer_async(*({"number": number} for number in numbers))

    async def work(self) -> None:
        async with self._app.open_async():
            await self._app.run_worker_async(install_signal_handlers=False, **self._worker)

    async def _begin(self, number: int) -> None:
        if self._stamps.begin(number):
            await asyncio.Event().wait()
