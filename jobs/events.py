"""Events: terminal transitions and document changes, in an order that a reader can resume from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs.model import JsonValue, TenantId
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class EventScope:
    """Whose events: a tenant's, or only those of one batch or one job."""

    tenant_id: TenantId
    batch_id: UUID | None = None
    job_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to add in the transaction of what it tells."""

    tenant_id: TenantId
    type: str
    data: Mapping[str, JsonValue]
    job_id: UUID | None = None
    batch_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `cursor` resumes after it."""

    cursor: str
    type: str
    at: datetime
    job_id: UUID | None
    batch_id: UUID | None
    data: Mapping[str, JsonValue]


async def add(connection: Connection, events: Sequence[NewEvent]) -> None:
    """Write events in the caller's transaction."""
    raise NotImplementedError


async def after(
    connection: Connection, scope: EventScope, cursor: str | None, limit: int = 500
) -> list[Event]:
    """Events after `cursor` (None: the oldest kept), of transactions before which none is still open.

    Raises CursorPast when retention has dropped what followed the cursor, ValueError when it is malformed.
    """
    raise NotImplementedError


async def latest(connection: Connection) -> str:
    """The cursor after which only future events come."""
    raise NotImplementedError
