"""Reads batches and their results; counts come from one snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs import cursors
from jobs.batch_intake import state_of
from jobs.errors import BatchNotFound
from jobs.events import assert_reached
from jobs.model import Batch, Counts, TenantId
from jobs.states import BatchState, JobState
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Batches, newest first."""

    batches: tuple[Batch, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What a job came to. `result` and `error` are JSON text: they are passed on, not looked at."""

    id: UUID
    custom_id: str | None
    kind: str
    state: JobState
    attempt: int
    finished_at: datetime
    result: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ResultLine:
    """A terminal job of a batch and the cursor after it."""

    cursor: str
    job: EndedJob


async def get(connection: Connection, tenant_id: TenantId, batch_id: UUID) -> Batch:
    """Read a batch and its counts in one snapshot; raises BatchNotFound."""
    found = await get_many(connection, tenant_id, [batch_id])
    if not found:
        raise BatchNotFound(batch_id)
    return found[0]


async def get_many(connection: Connection, tenant_id: TenantId, ids: Sequence[UUID]) -> list[Batch]:
    """Read those of the batches that exist, all in one snapshot, in any order."""
    rows = await connection.fetch(QUERIES["get_batches"], tenant_id, list(ids))
    return [replace(_batch_from(row), as_of=int(row["as_of"])) for row in rows]


async def list_batches(
    connection: Connection,
    tenant_id: TenantId,
    *,
    state: BatchState | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> BatchPage:
    """One page of batches, newest first; raises ValueError for a cursor that no page gave."""
    before = cursors.read_id(cursor)
    rows = await connection.fetch(QUERIES["list_batches"], tenant_id, before, state, limit + 1)
    found = tuple(_batch_from(row) for row in rows[:limit])
    return BatchPage(found, cursors.after_id(found[-1].id) if len(rows) > limit else None)


async def results(
    connection: Connection,
    tenant_id: TenantId,
    batch_id: UUID,
    *,
    cursor: str | None = None,
    limit: int = 1000,
) -> list[ResultLine]:
    """Terminal jobs of the batch after `cursor`, in the order they became visible; no follow-ups.

    Complete once the batch is finished. At most `limit`, fewer where results are large: only an
    empty page is the last one. A job that was retried shows again, further on. Raises
    BatchNotFound, CursorPast for a cursor of before a restore, and ValueError for one that no line
    gave.
    """
    xid, job_id = cursors.read_place(cursor)
    rows = await connection.fetch(QUERIES["batch_results"], tenant_id, batch_id, xid, job_id, limit)
    if not rows:
        await state_of(connection, tenant_id, batch_id)
        if cursor is not None:
            await assert_reached(connection, cursor, int(xid))
    return [
        ResultLine(cursors.after_place(int(row["xid_text"]), row["id"]), _ended_from(row))
        for row in rows
    ]


def _ended_from(row: asyncpg.Record) -> EndedJob:
    return EndedJob(
        id=row["id"],
        custom_id=row["custom_id"],
        kind=row["kind"],
        state=JobState(row["state"]),
        attempt=row["attempt"],
        finished_at=row["finished_at"],
        result=row["result"],
        error=row["error"],
    )


def _batch_from(row: asyncpg.Record) -> Batch:
    return Batch(
        id=row["id"],
        state=BatchState(row["state"]),
        run=row["run"],
        tags=tuple(row["tags"]),
        callback_url=row["callback_url"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        counts=_counts(row, ""),
        follow_ups=_counts(row, "follow_"),
    )


def _counts(row: asyncpg.Record, prefix: str) -> Counts:
    return Counts(
        total=row[f"{prefix}total"],
        scheduled=row[f"{prefix}scheduled"],
        queued=row[f"{prefix}queued"],
        running=row[f"{prefix}running"],
        succeeded=row[f"{prefix}succeeded"],
        failed=row[f"{prefix}failed"],
        cancelled=row[f"{prefix}cancelled"],
    )
