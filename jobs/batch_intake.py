"""Creates batches and takes their parts."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from jobs.bulk import fill
from jobs.enqueue import DEFAULT_AGEING_S
from jobs.errors import BatchNotFound, BatchNotOpen, IdempotencyMismatch
from jobs.kinds import KindRegistry
from jobs.model import TenantId
from jobs.results import Ready
from jobs.spool import Spool
from jobs.states import BatchState
from runtime.ids import uuid7
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


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

    Raises BatchNotFound, BatchNotOpen, JobsRefused, and IdempotencyMismatch when the key named
    another part.
    """
    async with connection.transaction():
        state = await state_of(connection, tenant_id, batch_id)
        is_new = await connection.fetchval(
            QUERIES["take_part"], batch_id, part_key, request_hash, len(spool)
        )
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
        message = f"batch {batch_id} is {state} and takes no more jobs: create another"
        raise BatchNotOpen(message)


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
