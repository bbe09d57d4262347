"""Batches: jobs submitted together, counted in one snapshot, finished when nothing of them is live."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs.kinds import KindRegistry
from jobs.model import Accepted, Batch, Job, NewJob, TenantId
from jobs.results import CancelResult, RetryResult
from jobs.states import BatchState
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to create; `open` takes parts until it is sealed."""

    state: BatchState = BatchState.RUNNING
    tags: tuple[str, ...] = ()
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """A part of an open batch: how many jobs it added; `replayed` when it was added before."""

    jobs: int
    accepted: tuple[Accepted, ...] = ()
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Batches, newest first."""

    batches: tuple[Batch, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ResultLine:
    """A terminal job of a batch and the cursor after it."""

    cursor: str
    job: Job


async def create(
    connection: Connection, tenant_id: TenantId, batch: NewBatch, *, now: datetime | None = None
) -> UUID:
    """Make an empty batch; `ledger.enqueue(..., batch_id=)` fills a running one in the same transaction."""
    raise NotImplementedError


async def append(
    connection: Connection,
    tenant_id: TenantId,
    batch_id: UUID,
    jobs: Sequence[NewJob],
    *,
    part_key: str,
    request_hash: bytes,
    kinds: KindRegistry,
    now: datetime | None = None,
) -> Appended:
    """Add a part to an open batch, once per `part_key`, in the caller's transaction.

    Raises BatchNotFound, BatchNotOpen, JobsRefused, and IdempotencyMismatch when the key named another part.
    """
    raise NotImplementedError


async def seal(
    connection: Connection, tenant_id: TenantId, batch_id: UUID, *, now: datetime | None = None
) -> None:
    """Let an open batch finish. Idempotent; raises BatchNotFound. Call `finish_due` after the commit."""
    raise NotImplementedError


async def get(connection: Connection, tenant_id: TenantId, batch_id: UUID) -> Batch:
    """Read a batch and its counts in one snapshot; raises BatchNotFound."""
    raise NotImplementedError


async def list_batches(
    connection: Connection,
    tenant_id: TenantId,
    *,
    state: BatchState | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> BatchPage:
    """One page of batches, newest first; raises ValueError for a cursor that no page gave."""
    raise NotImplementedError


async def results(
    connection: Connection,
    tenant_id: TenantId,
    batch_id: UUID,
    *,
    cursor: str | None = None,
    limit: int = 1000,
) -> list[ResultLine]:
    """Terminal jobs of the batch after `cursor`, in the order they became visible; follow-ups excluded.

    Complete once the batch is finished. A job that was retried shows again, further on.
    """
    raise NotImplementedError


async def cancel(
    connection: Connection, tenant_id: TenantId, batch_id: UUID, *, now: datetime | None = None
) -> CancelResult:
    """Seal the batch and cancel what is live in it, follow-ups included; finished work is kept."""
    raise NotImplementedError


async def retry(
    connection: Connection, tenant_id: TenantId, batch_id: UUID, *, now: datetime | None = None
) -> RetryResult:
    """Retry the failed and cancelled jobs of the batch, follow-ups included."""
    raise NotImplementedError


async def finish_due(
    connection: Connection,
    batch_ids: Sequence[UUID] | None = None,
    *,
    limit: int = 100,
    now: datetime | None = None,
) -> list[UUID]:
    """Finish those batches (None: any) of which nothing is live, with event and callback; answers them.

    Call it in a transaction of its own after the one that ended their jobs; a sweeper repeats it.
    """
    raise NotImplementedError
