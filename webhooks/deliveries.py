"""The log of deliveries: lists, one with its attempts, sending one again, and forgetting.

One function a verb; callers commit. Many at once are sent again by webhooks/redeliveries.py.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from jobs.model import TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks import circuits, rows
from webhooks.errors import DeliveryNotFound, EndpointDisabled
from webhooks.model import Delivery, DeliveryAttempt, DeliveryState

QUERIES = load_queries("webhooks", "deliveries")
# Where a list begins: behind everything.
_NEWEST = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ends: the next one begins with what is older."""

    occurred_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries; every condition that is given must hold. Times are of the event."""

    endpoint_id: UUID | None = None
    state: DeliveryState | None = None
    type: str | None = None
    occurred_after: datetime | None = None
    occurred_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Deliveries, newest first, and where the next page begins; None on the last one only."""

    deliveries: list[Delivery]
    next: Place | None = None


async def find(
    connection: Connection,
    tenant_id: TenantId,
    wanted: DeliveryFilter | None = None,
    *,
    before: Place | None = None,
    limit: int = 100,
) -> DeliveryPage:
    """A page of what matches; it may be short, even empty, before the last one: what one page reads
    is bounded.
    """
    wanted = wanted or DeliveryFilter()
    at, id_ = _NEWEST if before is None else (before.occurred_at, before.id)
    if wanted.occurred_before is not None and wanted.occurred_before <= at:
        at, id_ = wanted.occurred_before, UUID(int=0)
    found = await connection.fetch(
        QUERIES["list_deliveries"],
        tenant_id,
        wanted.endpoint_id,
        wanted.state,
        wanted.type,
        at,
        id_,
        wanted.occurred_after,
        limit,
    )
    matching = [rows.delivery(row) for row in found if row["matches"]]
    is_cut = len(matching) == limit or bool(found and not found[-1]["matches"])
    last = Place(found[-1]["occurred_at"], found[-1]["id"]) if found else None
    return DeliveryPage(matching, last if is_cut else None)


async def get(
    connection: Connection, tenant_id: TenantId, delivery_id: UUID
) -> tuple[Delivery, list[DeliveryAttempt]]:
    """Read one delivery and its log, oldest attempt first. Raises DeliveryNotFound."""
    row = await connection.fetchrow(QUERIES["get_delivery"], tenant_id, delivery_id)
    if row is None:
        raise DeliveryNotFound(delivery_id)
    log = await connection.fetch(QUERIES["list_attempts"], tenant_id, delivery_id)
    return rows.delivery(row), [rows.attempt(line) for line in log]


async def redeliver(
    connection: Connection, tenant_id: TenantId, delivery_id: UUID, *, now: datetime | None = None
) -> Delivery:
    """Owe a delivery again at once, under the same webhook-id and with a fresh budget of attempts.

    One that is being sent right now is left alone; an open circuit lets it through as its probe.
    Raises DeliveryNotFound or EndpointDisabled.
    """
    lane = await connection.fetchval(QUERIES["owe_again"], tenant_id, delivery_id, now)
    if lane is None:
        lane = await connection.fetchval(QUERIES["hasten"], tenant_id, delivery_id, now)
    if lane is not None:
        await circuits.hasten(connection, [lane], now=now)
    delivery, _ = await get(connection, tenant_id, delivery_id)
    if delivery.state is not DeliveryState.PENDING and delivery.endpoint_id is not None:
        raise EndpointDisabled(delivery.endpoint_id)
    return delivery


async def prune(connection: Connection, *, before: datetime, limit: int = 10_000) -> int:
    """Forget up to `limit` finished deliveries, lines of the log and redeliveries each; answers
    how many.
    """
    gone = [
        await connection.execute(QUERIES[name], before, limit)
        for name in ("prune_deliveries", "prune_attempts", "prune_redeliveries")
    ]
    return sum(int(status.rpartition(" ")[2]) for status in gone)
