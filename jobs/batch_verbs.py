"""Ends batches, cancels and retries them whole, in steps of many jobs."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from uuid import UUID

from jobs import ledger
from jobs.batch_intake import seal, state_of
from jobs.model import TenantId
from jobs.results import CancelResult, Ready, RetryResult
from jobs.transactions import atomically
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")

JOBS_A_STEP = 1000


async def finish_due(
    connection: Connection,
    batch_ids: Sequence[UUID] | None = None,
    *,
    limit: int = 100,
    now: datetime | None = None,
) -> list[UUID]:
    """Finish those batches (None: any) of which nothing is live, with event and callback; answers
    them.

    Call it after the transaction that ended their jobs; a sweeper repeats it for whoever died
    between.
    """
    asked = None if batch_ids is None else list(batch_ids)

    async def finish() -> list[UUID]:
        rows = await connection.fetch(QUERIES["lock_due_batches"], asked, limit)
        if not rows:
            return []
        due = [row["id"] for row in rows]
        finished = await connection.fetch(QUERIES["finish_batches"], due, now)
        return [row["id"] for row in finished]

    return await atomically(connection, finish)


async def cancel(
    connection: Connection, tenant_id: TenantId, batch_id: UUID, *, now: datetime | None = None
) -> CancelResult:
    """Seal the batch and cancel what is live in it, follow-ups included; finished work is kept.

    Call `finish_due` after the commit. Raises BatchNotFound.
    """
    total = CancelResult()
    async with connection.transaction():
        await seal(connection, tenant_id, batch_id)
        async for ids in _ids(connection, "live_of_batch", batch_id):
            step = await ledger.cancel(connection, tenant_id, ids, now=now)
            total = CancelResult(
                cancelled=total.cancelled + step.cancelled,
                requested={
                    slot_id: total.requested.get(slot_id, ()) + step.requested.get(slot_id, ())
                    for slot_id in {**total.requested, **step.requested}
                },
                ready=_both(total.ready, step.ready),
                batches=tuple(sorted({batch_id, *total.batches, *step.batches})),
            )
    return total


async def retry(
    connection: Connection, tenant_id: TenantId, batch_id: UUID, *, now: datetime | None = None
) -> RetryResult:
    """Retry what failed or was cancelled, follow-ups included. Raises BatchNotFound."""
    total = RetryResult()
    async with connection.transaction():
        await state_of(connection, tenant_id, batch_id)
        async for ids in _ids(connection, "unsuccessful_of_batch", batch_id):
            step = await ledger.retry(connection, tenant_id, ids, now=now)
            total = RetryResult(
                retried=total.retried + step.retried,
                live=total.live + step.live,
                key_taken=total.key_taken + step.key_taken,
                ready=_both(total.ready, step.ready),
            )
    return total


async def _ids(connection: Connection, query: str, batch_id: UUID) -> AsyncIterator[list[UUID]]:
    """The batch's jobs in the order of their ids, some at a time."""
    last = UUID(int=0)
    while True:
        rows = await connection.fetch(QUERIES[query], batch_id, last, JOBS_A_STEP)
        if not rows:
            return
        ids = [row["id"] for row in rows]
        last = ids[-1]
        yield ids


def _both(one: Ready, other: Ready) -> Ready:
    return {pool: (*one.get(pool, ()), *other.get(pool, ())) for pool in {**one, **other}}
