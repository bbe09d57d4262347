"""Cancels jobs and what they created: at once while they wait, by their slot while they run."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from jobs.aftermath import Aftermath, Verdict
from jobs.counts import NO_SLOT
from jobs.model import SlotId, TenantId
from jobs.outcomes import Problem
from jobs.results import CancelResult
from jobs.states import JobState
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

_CANCELLED = Verdict(
    JobState.CANCELLED, Problem("cancelled", "cancelled by request", retryable=False)
)


async def cancel(
    connection: Connection, tenant_id: TenantId, ids: Sequence[UUID], *, now: datetime | None = None
) -> CancelResult:
    """Cancel jobs and their live descendants. Idempotent; finished work is kept."""
    asked = list(dict.fromkeys(ids))

    async def cancel_all() -> CancelResult:
        known = {
            row["id"] for row in await connection.fetch(QUERIES["known_jobs"], tenant_id, asked)
        }
        rows = await connection.fetch(QUERIES["lock_for_cancel"], tenant_id, asked)
        live = [row["id"] for row in rows]
        aftermath = Aftermath(connection, NO_SLOT, now)
        over = await aftermath.end_waiting(dict.fromkeys(live, _CANCELLED)) if live else []
        cancelled = {job.id for job in over}
        running = [job_id for job_id in live if job_id not in cancelled]
        requested = await _request(connection, running, now)
        await aftermath.apply()
        return CancelResult(
            cancelled=tuple(job.id for job in over),
            requested=requested,
            terminal=tuple(job_id for job_id in asked if job_id in known - set(live)),
            missing=tuple(job_id for job_id in asked if job_id not in known),
            ready=aftermath.ready_by_pool(),
            batches=aftermath.deltas.batches,
        )

    return await atomically(connection, cancel_all)


async def _request(
    connection: Connection, running: Sequence[UUID], now: datetime | None
) -> dict[SlotId, tuple[UUID, ...]]:
    """Ask the slots of running jobs to stop them; answers the jobs by slot."""
    by_slot: defaultdict[SlotId, tuple[UUID, ...]] = defaultdict(tuple)
    if running:
        for row in await connection.fetch(QUERIES["request_cancel"], running, now):
            by_slot[SlotId(row["slot_id"])] += (row["job_id"],)
    return dict(by_slot)
