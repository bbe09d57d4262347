"""A slot played by the test: claims from the ledger and records endings as a real slot does."""

import random
import socket
from dataclasses import dataclass
from uuid import uuid4

import anyio

from jobs import batches, ledger, slots
from jobs.kinds import load_kinds
from jobs.live import LiveStream
from jobs.model import ClaimedJob, SlotId
from jobs.outcomes import Completed, Ending
from jobs.results import Ended
from runtime.postgres import Pool


@dataclass(slots=True)
class PlayedSlot:
    """A registered slot of one pool."""

    db: Pool
    live: LiveStream
    pool: str
    id: SlotId

    async def claim(self, count: int = 1000) -> list[ClaimedJob]:
        async with self.db.acquire() as connection, connection.transaction():
            kinds = tuple(kind.name for kind in load_kinds())
            claimed = await ledger.claim(connection, self.id, self.pool, kinds, count)
        await self.live.started(claimed)
        return list(claimed)

    async def claim_next(self) -> list[ClaimedJob]:
        """Poll, as a slot does that no wake-up reaches, until there is something to claim."""
        while True:
            if claimed := await self.claim():
                return claimed
            await anyio.sleep(0.01)

    async def end(self, jobs: list[ClaimedJob], ending: Ending | None = None) -> None:
        """Record the endings, finish batches and nudge watchers."""
        ended = [Ended(job, ending or Completed({"ok": True})) for job in jobs]
        async with self.db.acquire() as connection, connection.transaction():
            recorded = await ledger.record(
                connection, self.id, ended, kinds=load_kinds(), rng=random.Random(7)
            )
        async with self.db.acquire() as connection, connection.transaction():
            await batches.finish_due(connection, recorded.batches)
        by_tenant = {job.tenant_id for job in jobs}
        for tenant_id in by_tenant:
            ids = [job.id for job in jobs if job.tenant_id == tenant_id]
            await self.live.changed(tenant_id, ids, {j.batch_id for j in jobs if j.batch_id})


async def register(db: Pool, live: LiveStream, pool: str) -> PlayedSlot:
    async with db.acquire() as connection:
        slot_id = await slots.register(
            connection,
            supervisor_id=uuid4(),
            pool=pool,
            number=0,
            host=socket.gethostname(),
            pid=1,
            cores=(0,),
            kinds=tuple(kind.name for kind in load_kinds()),
        )
    return PlayedSlot(db, live, pool, slot_id)
