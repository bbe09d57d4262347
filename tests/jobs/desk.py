"""A desk to test the ledger at: short verbs over a pool, and an audit of all invariants."""

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from jobs import ledger, lookup, slots
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import DEFAULT_TENANT, Accepted, ClaimedJob, Job, NewJob, SlotId
from jobs.outcomes import Completed, Ending, Failed, Problem
from jobs.results import Ended, Recorded
from runtime.postgres import Connection, Pool

DONE = Completed(None)
BROKEN = Failed(Problem("broken", "it broke", retryable=True))
HOPELESS = Failed(Problem("hopeless", "it cannot work", retryable=False))

# Each answers rows only where the ledger contradicts itself.
INVARIANTS = {
    "a live job is in exactly one narrow table": """
        SELECT id, places FROM (
            SELECT j.id, (h.job_id IS NOT NULL)::int + (r.job_id IS NOT NULL)::int
                + (p.job_id IS NOT NULL)::int AS places
            FROM jobs j LEFT JOIN held h ON h.job_id = j.id LEFT JOIN ready r ON r.job_id = j.id
            LEFT JOIN parked p ON p.job_id = j.id
        ) AS live WHERE places <> 1""",
    "no narrow row without its job": """
        SELECT job_id FROM (SELECT job_id FROM held UNION ALL SELECT job_id FROM ready
            UNION ALL SELECT job_id FROM parked) AS n
        WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = n.job_id)""",
    "a job is live or terminal": """
        SELECT id FROM jobs WHERE EXISTS (SELECT 1 FROM history WHERE id = jobs.id)
        UNION ALL SELECT id FROM history GROUP BY id HAVING count(*) > 1""",
    "batch counts are the jobs": """
        SELECT b.id, b.total, b.scheduled, b.queued, b.running, b.succeeded, b.failed, b.cancelled
        FROM counted_batches b
        WHERE (b.total, b.scheduled, b.queued, b.running, b.succeeded, b.failed, b.cancelled,
               b.follow_total, b.follow_scheduled, b.follow_queued, b.follow_running,
               b.follow_succeeded, b.follow_failed, b.follow_cancelled) <> (
            SELECT
                count(*) FILTER (WHERE parent_id IS NULL),
                count(*) FILTER (WHERE parent_id IS NULL AND state = 'scheduled'),
                count(*) FILTER (WHERE parent_id IS NULL AND state = 'queued'),
                count(*) FILTER (WHERE parent_id IS NULL AND state = 'running'),
                count(*) FILTER (WHERE parent_id IS NULL AND state = 'succeeded'),
                count(*) FILTER (WHERE parent_id IS NULL AND state = 'failed'),
                count(*) FILTER (WHERE parent_id IS NULL AND state = 'cancelled'),
                count(*) FILTER (WHERE parent_id IS NOT NULL),
                count(*) FILTER (WHERE parent_id IS NOT NULL AND state = 'scheduled'),
                count(*) FILTER (WHERE parent_id IS NOT NULL AND state = 'queued'),
                count(*) FILTER (WHERE parent_id IS NOT NULL AND state = 'running'),
                count(*) FILTER (WHERE parent_id IS NOT NULL AND state = 'succeeded'),
                count(*) FILTER (WHERE parent_id IS NOT NULL AND state = 'failed'),
                count(*) FILTER (WHERE parent_id IS NOT NULL AND state = 'cancelled')
            FROM (SELECT batch_id, parent_id, state FROM live_jobs
                  UNION ALL SELECT batch_id, parent_id, state FROM finished_jobs) AS j
            WHERE j.batch_id = b.id)""",
    "permits in use are queued and running jobs": """
        SELECT l.key, l.in_use, count(j.id) FROM limits l
        LEFT JOIN live_jobs j ON j.tenant_id = l.tenant_id AND j.concurrency_key = l.key
            AND j.state IN ('queued', 'running')
        GROUP BY l.tenant_id, l.key, l.in_use HAVING l.in_use <> count(j.id)""",
    "no permit lies idle while a job waits for it": """
        SELECT l.key FROM limits l WHERE l.in_use < l.concurrency AND EXISTS (
            SELECT 1 FROM parked p WHERE p.reason = 'limit' AND p.tenant_id = l.tenant_id
            AND p.concurrency_key = l.key)""",
    "families count their descendants": """
        SELECT f.job_id, f.open, f.total, f.succeeded, f.failed, f.cancelled FROM families f
        WHERE (f.open, f.total, f.succeeded, f.failed, f.cancelled) <> (
            SELECT count(*) FILTER (WHERE j.is_live), count(*),
                count(*) FILTER (WHERE j.state = 'succeeded'),
                count(*) FILTER (WHERE j.state = 'failed'),
                count(*) FILTER (WHERE j.state = 'cancelled')
            FROM (SELECT lineage, '' AS state, true AS is_live FROM jobs
                  UNION ALL SELECT lineage, state, false FROM history) AS j
            WHERE j.lineage @> ARRAY[f.job_id])""",
    "settled is what has ended with all descendants": """
        SELECT f.job_id FROM families f
        WHERE (f.settled_at IS NOT NULL) IS DISTINCT FROM
            (f.open = 0 AND EXISTS (SELECT 1 FROM history WHERE id = f.job_id))""",
    "nobody waits for a parent that has ended": """
        SELECT d.* FROM dependencies d JOIN jobs j ON j.id = d.job_id
        WHERE NOT EXISTS (SELECT 1 FROM jobs p WHERE p.id = d.parent_id)""",
    "pending parents are the edges left": """
        SELECT j.id, j.pending_parents, count(d.parent_id) FROM jobs j
        LEFT JOIN dependencies d ON d.job_id = j.id
        GROUP BY j.id, j.pending_parents HAVING j.pending_parents <> count(d.parent_id)""",
    "every terminal job was told once a life": """
        SELECT h.id FROM history h WHERE NOT EXISTS (
            SELECT 1 FROM events e WHERE e.job_id = h.id AND e.type = 'job.' || h.state)""",
}


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


async def audit(connection: Connection) -> None:
    """Assert every invariant."""
    for name, query in INVARIANTS.items():
        rows = await connection.fetch(query)
        assert not rows, f"{name}: {rows[:5]}"


def probe(**fields: Any) -> NewJob:
    """A job of the kind that does as it is told; `fields` are those of NewJob."""
    return NewJob("probe", {}, **fields)
