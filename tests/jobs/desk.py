"""A desk to test the ledger at: short verbs over a pool, and an audit of all invariants."""

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import orjson

from chaos.checker import check, report
from chaos.collect import collect
from chaos.history import ClientLog
from jobs import ledger, lookup, slots
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import DEFAULT_TENANT, Accepted, ClaimedJob, Job, NewJob, SlotId
from jobs.outcomes import Completed, Ending, Failed, Problem
from jobs.results import Ended, Recorded
from jobs.spool import Spool, Terms
from runtime.postgres import Connection, Pool

DONE = Completed(None)
# Tests submit and retry without keeping a log.
NO_LOG = ClientLog(is_complete=False)
BROKEN = Failed(Problem("broken", "it broke", retryable=True))
HOPELESS = Failed(Problem("hopeless", "it cannot work", retryable=False))


@dataclass(slots=True)
class Desk:
    """The ledger's verbs with a test's defaults."""

    pool: Pool
    kinds: KindRegistry = field(default_factory=load_kinds)
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    async def enqueue(self, *jobs: NewJob, batch_id: UUID | None = None) -> list[Accepted]:
        async with self.pool.acquire() as connection:
            return await ledger.enqueue(
                connection, DEFAULT_TENANT, jobs, kinds=self.kinds, batch_id=batch_id
            )

    async def slot(self, pool: str = "probe") -> SlotId:
        async with self.pool.acquire() as connection:
            return await slots.register(
                connection,
                supervisor_id=uuid4(),
                pool=pool,
                number=0,
                host=socket.gethostname(),
                pid=1,
                cores=[0],
                kinds=[kind.name for kind in self.kinds.of_pool(pool)],
            )

    async def claim(
        self, slot: SlotId, limit: int = 100, *, pool: str = "probe", alone_ok: bool = False
    ) -> list[ClaimedJob]:
        kinds = [kind.name for kind in self.kinds.of_pool(pool)]
        async with self.pool.acquire() as connection:
            return await ledger.claim(connection, slot, pool, kinds, limit, alone_ok=alone_ok)

    async def end(
        self, slot: SlotId, jobs: Sequence[ClaimedJob], ending: Ending = DONE
    ) -> Recorded:
        return await self.record(slot, *(Ended(job, ending, 0.5) for job in jobs))

    async def record(self, slot: SlotId, *ended: Ended) -> Recorded:
        async with self.pool.acquire() as connection:
            return await ledger.record(connection, slot, ended, kinds=self.kinds, rng=self.rng)

    async def get(self, job_id: UUID) -> Job:
        async with self.pool.acquire() as connection:
            return await lookup.get(connection, DEFAULT_TENANT, job_id)

    async def states(self, *job_ids: UUID) -> list[str]:
        async with self.pool.acquire() as connection:
            found = await lookup.get_many(connection, DEFAULT_TENANT, job_ids)
        return [job.state.value for job in found]

    async def audit(self) -> None:
        async with self.pool.acquire() as connection:
            await audit(connection)


async def audit(connection: Connection, log: ClientLog = NO_LOG) -> None:
    """Assert every promise that can be told from what is left, and from what the log says."""
    violations = check(await collect(connection, log))
    assert not violations, report(violations)


def spooled(*jobs: NewJob) -> Spool:
    """The jobs as an upload brings them: plain ones on their terms, others as they are."""
    spool, kinds = Spool(), load_kinds()
    for job in jobs:
        kind, payload = kinds[job.kind], orjson.dumps(job.payload)
        terms = Terms(
            kind, job.priority, job.max_attempts, job.timeout_s, job.tags, job.callback_url
        )
        if replace(terms.as_job(), payload=job.payload, custom_id=job.custom_id) == job:
            spool.add(terms, job.custom_id, payload)
        else:
            spool.add_other(kind, job, payload)
    return spool


def probe(**fields: Any) -> NewJob:
    """A job of the kind that does as it is told; `fields` are those of NewJob."""
    return NewJob("probe", {}, **fields)
