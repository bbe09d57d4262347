"""Creates batches and takes their parts."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs import cursors
from jobs.bulk import fill
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.errors import BatchNotFound, BatchNotOpen, IdempotencyInFlight, IdempotencyMismatch
from jobs.kinds import KindRegistry
from jobs.model import TenantId
from jobs.results import Ready
from jobs.spool import Spool
from jobs.states import BatchState
from runtime.ids import uuid7
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")
BATCHES = load_queries("jobs", "batches")


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to create; `open` takes parts until it is sealed."""

    state: BatchState = BatchState.RUNNING
    tags: tuple[str, ...] = ()
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """A part of an open batch: how many jobs it added and whom to wake; `replayed` when it was
    added before.
    """

    jobs: int
    ready: Ready = field(default_factory=dict)
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A part that a batch has."""

    key: str
    jobs: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PartPage:
    """Parts in the order of their names."""

    parts: tuple[Part, ...]
    next_cursor: str | None


async def create(
    connection: Connection, tenant_id: TenantId, batch: NewBatch, *, now: datetime | None = None
) -> UUID:
    """Make an empty batch; `ledger.enqueue(..., batch_id=)` fills a running one in the same
    transaction.
    """
    batch_id = uuid7()
    await connection.execute(
        QUERIES["create_batch"],
        batch_id,
        tenant_id,
        batch.state,
        list(batch.tags),
        batch.callback_url,
        now,
    )
    return batch_id


async def append(
    connection: Connection,
    tenant_id: TenantId,
    batch_id: UUID,
    spool: Spool,
    *,
    part_key: str,
    request_hash: bytes,
    kinds: KindRegistry,
    ageing_s: float = DEFAULT_AGEING_S,
) -> Appended:
    """Add a part to an open batch, once per `part_key`, in the caller's transaction.

    Raises BatchNotFound, BatchNotOpen, JobsRefused, IdempotencyMismatch when the key named another
    part, and IdempotencyInFlight while another request is adding it.
    """
    async with connection.transaction():
        state = await state_of(connection, tenant_id, batch_id)
        try:
            is_new = await connection.fetchval(
                QUERIES["take_part"], batch_id, part_key, request_hash, len(spool)
            )
        except asyncpg.LockNotAvailableError:
            message = f"part {part_key!r} is being added by another request: try again"
            raise IdempotencyInFlight(message) from None
        if is_new is None:
            return await _known_part(connection, batch_id, part_key, request_hash)
        _assert_open(batch_id, state)
        ready = await fill(
            connection, tenant_id, spool, kinds=kinds, batch_id=batch_id, ageing_s=ageing_s
        )
        locked = await connection.fetchval(QUERIES["lock_batch_state"], tenant_id, batch_id)
        _assert_open(batch_id, BatchState(locked))
    return Appended(len(spool), ready)


async def _known_part(
    connection: Connection, batch_id: UUID, part_key: str, request_hash: bytes
) -> Appended:
    row = await connection.fetchrow(QUERIES["known_part"], batch_id, part_key)
    if row is None or bytes(row["request_hash"]) != request_hash:
        message = f"part {part_key!r} was added with other jobs: give a new part a new key"
        raise IdempotencyMismatch(message)
    return Appended(row["jobs"], replayed=True)


def _assert_open(batch_id: UUID, state: BatchState) -> None:
    if state is not BatchState.OPEN:
        raise BatchNotOpen(batch_id, state)


async def has_part(connection: Connection, batch_id: UUID, part_key: str) -> bool:
    """Whether the part was added; ask `state_of` first whose batch it is."""
    return await connection.fetchrow(QUERIES["known_part"], batch_id, part_key) is not None


async def parts(
    connection: Connection,
    tenant_id: TenantId,
    batch_id: UUID,
    *,
    cursor: str | None = None,
    limit: int = 100,
) -> PartPage:
    """One page of the batch's parts by their names. Raises BatchNotFound, and ValueError for a
    cursor that no page gave.
    """
    await state_of(connection, tenant_id, batch_id)
    after = cursors.read_name(cursor)
    rows = await connection.fetch(BATCHES["list_parts"], batch_id, after, limit + 1)
    found = tuple(Part(row["part_key"], row["jobs"], row["created_at"]) for row in rows[:limit])
    return PartPage(found, cursors.after_name(found[-1].key) if len(rows) > limit else None)


async def state_of(connection: Connection, tenant_id: TenantId, batch_id: UUID) -> BatchState:
    """Open, running or finished; raises BatchNotFound."""
    state = await connection.fetchval(QUERIES["batch_state"], tenant_id, batch_id)
    if state is None:
        raise BatchNotFound(batch_id)
    return BatchState(state)


async def seal(connection: Connection, tenant_id: TenantId, batch_id: UUID) -> None:
    """Let an open batch finish. Idempotent; raises BatchNotFound. Call `finish_due` after the
    commit.
    """
    await state_of(connection, tenant_id, batch_id)
    await connection.execute(QUERIES["seal_batch"], tenant_id, batch_id)
