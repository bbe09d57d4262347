"""Moves scheduled jobs on when their time comes. Any number of sweepers may call it at once."""

from datetime import datetime

from jobs.aftermath import Aftermath, Verdict
from jobs.counts import NO_SLOT
from jobs.model import TenantId
from jobs.outcomes import Problem
from jobs.results import Expired, Ready
from jobs.states import JobState
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

_EXPIRED = Verdict(
    JobState.FAILED,
    Problem("expired", "was not started before its expires_at", retryable=False),
)


async def promote_due(connection: Connection, limit: int, *, now: datetime | None = None) -> Ready:
    """Queue up to `limit` delayed and backed-off jobs that are due; answers them by pool."""

    async def promote() -> Ready:
        aftermath = Aftermath(connection, NO_SLOT, now)
        for row in await connection.fetch(QUERIES["promote_due"], limit, now):
            if row["key"] is not None:
                aftermath.wait_for_permit(TenantId(row["tenant_id"]), row["key"])
            else:
                aftermath.queued(
                    row["job_id"], row["pool"], row["batch_id"], follow_up=row["follow_up"]
                )
        await aftermath.apply()
        return aftermath.ready_by_pool()

    return await atomically(connection, promote)


async def expire(connection: Connection, limit: int, *, now: datetime | None = None) -> Expired:
    """Fail up to `limit` waiting jobs whose `expires_at` has passed."""

    async def end() -> Expired:
        rows = await connection.fetch(QUERIES["lock_expired"], limit, now)
        if not rows:
            return Expired()
        aftermath = Aftermath(connection, NO_SLOT, now)
        over = await aftermath.end_waiting({row["id"]: _EXPIRED for row in rows})
        await aftermath.apply()
        ids = tuple(job.id for job in over)
        return Expired(ids, aftermath.ready_by_pool(), aftermath.deltas.batches)

    return await atomically(connection, end)
