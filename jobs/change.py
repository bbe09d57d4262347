"""Changes a live job's priority, time and tags."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs.aftermath import Aftermath
from jobs.counts import NO_SLOT
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.errors import JobNotFound, StateConflict
from jobs.model import TenantId
from jobs.results import Ready
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

# How often a sweeper or a claim may move the job while it is being changed.
_SLIPS_MAX = 20


async def change(
    connection: Connection,
    tenant_id: TenantId,
    job_id: UUID,
    *,
    priority: int | None = None,
    run_at: datetime | None = None,
    tags: Sequence[str] | None = None,
    now: datetime | None = None,
    ageing_s: float = DEFAULT_AGEING_S,
) -> Ready:
    """Change what is given (None: leave); answers what became claimable by it.

    Raises JobNotFound, and StateConflict for a terminal job or for the time of a running one.
    """

    async def change_all() -> Ready:
        job = await _lock(connection, tenant_id, job_id)
        rank = job["priority"] if priority is None else priority
        await connection.execute(
            QUERIES["change_job"],
            job_id,
            rank,
            job["run_at"] if run_at is None else run_at,
            job["tags"] if tags is None else list(tags),
            ageing_s,
        )
        aftermath = Aftermath(connection, NO_SLOT, now)
        for _ in range(_SLIPS_MAX):
            if await _move(connection, aftermath, job_id, run_at, priority=rank, ageing_s=ageing_s):
                break
        await aftermath.apply()
        return aftermath.ready_by_pool()

    return await atomically(connection, change_all)


async def _lock(connection: Connection, tenant_id: TenantId, job_id: UUID) -> asyncpg.Record:
    job = await connection.fetchrow(QUERIES["lock_for_change"], tenant_id, job_id)
    if job is not None:
        return job
    if await connection.fetch(QUERIES["known_jobs"], tenant_id, [job_id]):
        message = f"job {job_id} is over: only retry changes it"
        raise StateConflict(message)
    raise JobNotFound(job_id)


async def _move(
    connection: Connection,
    aftermath: Aftermath,
    job_id: UUID,
    run_at: datetime | None,
    *,
    priority: int,
    ageing_s: float,
) -> bool:
    """Carry the change into the narrow table that holds the job; False when it slipped away."""
    parked = await connection.fetchval(QUERIES["change_parked"], job_id, run_at, priority, ageing_s)
    if parked is not None:
        if parked in {"delayed", "backoff", "limit"} and run_at is not None:
            await aftermath.unpark([job_id])
        return True
    if await connection.fetchval(QUERIES["change_ready"], job_id) is not None:
        if run_at is not None:
            rows = await connection.fetch(QUERIES["delay_ready"], job_id, aftermath.now)
            for row in rows:
                aftermath.put_off(row)
        return True
    if await connection.fetchval(QUERIES["is_held"], job_id) is None:
        return False
    if run_at is not None:
        message = f"job {job_id} is running: its time cannot change"
        raise StateConflict(message)
    return True
