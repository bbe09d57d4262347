"""Works bulk operations off in a process that ticks, and tells Redis what each slice changed.

Any number run at once, without a leader: who locks an operation's row does its next slice.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import asyncpg

from jobs import operation_slices
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.live import LiveStream
from jobs.operation_slices import Worked
from jobs.results import Ready
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool

log = logger("operations")

# What passes: Postgres away, its pool exhausted, a slice refused at its commit.
_PASSING = (*UNREACHABLE, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, slots=True)
class OperationTicker:
    """What a ticker of operations works with."""

    pool: Pool
    live: LiveStream
    announce: Callable[[Ready], Awaitable[None]]
    ageing_s: float = DEFAULT_AGEING_S

    async def run(self, *, poll_s: float) -> None:
        """Slice after slice while there is one; else look every `poll_s`."""
        while True:
            worked = None
            try:
                worked = await self.tick()
            except _PASSING as error:
                log.warning("operations_wait", error=str(error))
            if worked is None:
                await anyio.sleep(poll_s)

    async def tick(self) -> Worked | None:
        """Do one slice and tell of it; None when nothing is due."""
        async with self.pool.acquire() as connection:
            worked = await operation_slices.work(connection, ageing_s=self.ageing_s)
        if worked is not None:
            await self.announce(worked.ready)
            await self.live.changed(worked.tenant_id, worked.jobs, worked.batches)
        return worked
