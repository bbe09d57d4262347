"""Bulk operations: retry, cancel or discard every job that matches a filter, durably, in slices.

Accepted is a row. Here it is made, read and stopped; jobs/operation_slices.py works it off
(docs/decisions/0021).
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import asyncpg

from jobs import cursors
from jobs.errors import OperationNotFound
from jobs.matching import (
    OPERATIONS,
    OperationAction,
    OperationFilter,
    Wanted,
    preview,
)
from jobs.model import JsonObject, TenantId
from runtime.ids import uuid7
from runtime.postgres import Connection

# Counting at acceptance is a courtesy to whoever watches the progress.
EXPECT_S = 0.25


class OperationState(StrEnum):
    """`failed`: it went through all jobs, and some could not be done."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Operation:
    """A bulk operation. `expected`: how many jobs matched when it was accepted, where that was
    known. `skipped` jobs matched, and had changed by the time it was their turn.
    """

    id: UUID
    tenant_id: TenantId
    action: OperationAction
    filter: OperationFilter
    actor: str
    state: OperationState
    expected: int | None
    done: int
    skipped: int
    failed: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: JsonObject | None
    as_of: str
    after_id: UUID

    @property
    def matched(self) -> int:
        """The jobs that were looked at so far."""
        return self.done + self.skipped + self.failed

    @property
    def wanted(self) -> Wanted:
        """What it looks for: nothing that came later."""
        return Wanted(self.tenant_id, self.action, self.filter, self.created_at, self.as_of)


@dataclass(frozen=True, slots=True)
class OperationPage:
    """Operations, newest first, and the cursor of the next page (None: there is none)."""

    operations: tuple[Operation, ...]
    next_cursor: str | None


async def accept(connection: Connection, wanted: Wanted, *, actor: str) -> Operation:
    """Accept an operation; jobs that come to match from now on are not part of it."""
    found = await preview(connection, wanted, seconds_max=EXPECT_S)
    (row,) = await connection.fetch(
        OPERATIONS["accept_operation"],
        uuid7(),
        wanted.tenant_id,
        wanted.action,
        wanted.filter.as_json(),
        actor,
        None if found.at_least else found.matched,
    )
    return operation_from(row)


async def get(connection: Connection, tenant_id: TenantId, operation_id: UUID) -> Operation:
    """Read an operation; raises OperationNotFound."""
    row = await connection.fetchrow(OPERATIONS["get_operation"], tenant_id, operation_id)
    if row is None:
        raise OperationNotFound(operation_id)
    return operation_from(row)


async def list_operations(
    connection: Connection,
    tenant_id: TenantId,
    *,
    state: OperationState | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> OperationPage:
    """One page, newest first. Raises ValueError for a cursor that no page gave."""
    rows = await connection.fetch(
        OPERATIONS["list_operations"], tenant_id, cursors.read_id(cursor), state, limit + 1
    )
    page = tuple(operation_from(row) for row in rows[:limit])
    return OperationPage(page, cursors.after_id(page[-1].id) if len(rows) > limit else None)


async def stop(connection: Connection, tenant_id: TenantId, operation_id: UUID) -> Operation:
    """Do no more of it; what was done stays done. Idempotent; raises OperationNotFound."""
    await connection.execute(OPERATIONS["stop_operation"], tenant_id, operation_id, None)
    return await get(connection, tenant_id, operation_id)


def operation_from(row: asyncpg.Record) -> Operation:
    """Read an operation from its row."""
    return Operation(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        action=OperationAction(row["action"]),
        filter=OperationFilter.from_json(row["filter"]),
        actor=row["actor"],
        state=OperationState(row["state"]),
        expected=row["expected"],
        done=row["done"],
        skipped=row["skipped"],
        failed=row["failed"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        error=row["error"],
        as_of=row["as_of_text"],
        after_id=row["after_id"],
    )
