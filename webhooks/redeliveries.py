"""Deliveries sent again by a filter: accepted as one row, then worked off in slices, each committed
with where the next one begins. Any number of deliverers work; each locks another row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from asyncpg import Record

from jobs.model import JsonObject, TenantId
from runtime.ids import uuid7
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks import circuits, endpoints
from webhooks.deliveries import DeliveryFilter
from webhooks.errors import EndpointDisabled, RedeliveryNotFound
from webhooks.model import DeliveryState

QUERIES = load_queries("webhooks", "deliveries")
COUNT_MAX = 10_000
# Spelled out in the queries as well.
SLICE_ROWS = 2000
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


class RedeliveryState(StrEnum):
    """Where a redelivery stands."""

    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Redelivery:
    """Deliveries to send again. `expected` is None when there are too many to count beforehand."""

    id: UUID
    tenant_id: TenantId
    filter: DeliveryFilter
    actor: str
    state: RedeliveryState
    expected: int | None
    done: int
    created_at: datetime
    finished_at: datetime | None


async def count(connection: Connection, tenant_id: TenantId, wanted: DeliveryFilter) -> int:
    """How many it would send again now, counted up to COUNT_MAX. Raises as `accept` does."""
    await _check(connection, tenant_id, wanted)
    found: int = await connection.fetchval(
        QUERIES["count_deliveries"],
        tenant_id,
        wanted.endpoint_id,
        _state(wanted),
        wanted.type,
        wanted.occurred_after,
        wanted.occurred_before,
        COUNT_MAX,
    )
    return found


async def accept(
    connection: Connection,
    tenant_id: TenantId,
    wanted: DeliveryFilter,
    *,
    actor: str,
    now: datetime | None = None,
) -> Redelivery:
    """Keep it; once that is committed it will be done. Raises EndpointNotFound and
    EndpointDisabled.
    """
    expected = await count(connection, tenant_id, wanted)
    row = await connection.fetchrow(
        QUERIES["accept_redelivery"],
        uuid7(),
        tenant_id,
        as_json(wanted),
        actor,
        expected if expected < COUNT_MAX else None,
        now,
    )
    if row is None:
        detail = "an INSERT … RETURNING answered no row"
        raise RuntimeError(detail)
    return _redelivery(row)


async def get(connection: Connection, tenant_id: TenantId, redelivery_id: UUID) -> Redelivery:
    """Read one. Raises RedeliveryNotFound."""
    row = await connection.fetchrow(QUERIES["get_redelivery"], tenant_id, redelivery_id)
    if row is None:
        raise RedeliveryNotFound(redelivery_id)
    return _redelivery(row)


async def list_redeliveries(
    connection: Connection, tenant_id: TenantId, *, before: UUID | None = None, limit: int = 100
) -> list[Redelivery]:
    """The tenant's, newest first, those older than the id `before`."""
    found = await connection.fetch(QUERIES["list_redeliveries"], tenant_id, before, limit)
    return [_redelivery(row) for row in found]


async def cancel(
    connection: Connection, tenant_id: TenantId, redelivery_id: UUID, *, now: datetime | None = None
) -> Redelivery:
    """Do no more of it; idempotent. Raises RedeliveryNotFound."""
    await connection.execute(QUERIES["cancel_redelivery"], tenant_id, redelivery_id, now)
    return await get(connection, tenant_id, redelivery_id)


async def work(connection: Connection, *, now: datetime | None = None) -> Redelivery | None:
    """Do one slice of the oldest redelivery, in a transaction of its own; None when there is none
    that nobody else works on.
    """
    async with connection.transaction():
        row = await connection.fetchrow(QUERIES["take_redelivery"])
        if row is None:
            return None
        taken = _redelivery(row)
        is_over, done = await _slice(connection, taken, row, now)
        await connection.execute(
            QUERIES["advance_redelivery"],
            taken.id,
            done["done"],
            done["after_at"],
            done["after_id"],
            is_over,
            now,
        )
        return await get(connection, taken.tenant_id, taken.id)


async def _slice(
    connection: Connection, taken: Redelivery, row: Record, now: datetime | None
) -> tuple[bool, Record]:
    """Whether it was the last one, and what it did."""
    wanted = taken.filter
    state = _state(wanted)
    name = "hasten_slice" if state is DeliveryState.PENDING else "redeliver_slice"
    done = await connection.fetchrow(
        QUERIES[name],
        taken.tenant_id,
        wanted.endpoint_id,
        state,
        wanted.type,
        max(row["after_at"], wanted.occurred_after or row["after_at"]),
        row["after_id"],
        taken.created_at,
        wanted.occurred_before or _END_OF_TIME,
        now,
    )
    if done is None:
        detail = "a SELECT of one row answered none"
        raise RuntimeError(detail)
    if done["lanes"]:
        await circuits.hasten(connection, done["lanes"], now=now)
    return done["read"] < SLICE_ROWS, done


async def _check(connection: Connection, tenant_id: TenantId, wanted: DeliveryFilter) -> None:
    """Raise when the endpoint that is asked for would not be sent anything."""
    if wanted.endpoint_id is None:
        return
    endpoint = await endpoints.get(connection, tenant_id, wanted.endpoint_id)
    if endpoint.disabled_at is not None:
        raise EndpointDisabled(endpoint.id)


def _state(wanted: DeliveryFilter) -> DeliveryState:
    return wanted.state or DeliveryState.DEAD


def as_json(wanted: DeliveryFilter) -> JsonObject:
    """The stored and public form of a filter: the conditions that were given."""
    given = {field.name: getattr(wanted, field.name) for field in fields(wanted)}
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value)
        for name, value in given.items()
        if value is not None
    }


def _filter(stored: Mapping[str, Any]) -> DeliveryFilter:
    return DeliveryFilter(**{name: _READ.get(name, str)(value) for name, value in stored.items()})


_READ: Mapping[str, Any] = {  # readers of one value each, of as many types
    "endpoint_id": UUID,
    "state": DeliveryState,
    "occurred_after": datetime.fromisoformat,
    "occurred_before": datetime.fromisoformat,
}


def _redelivery(row: Record) -> Redelivery:
    return Redelivery(
        id=row["id"],
        tenant_id=TenantId(row["tenant_id"]),
        filter=_filter(row["filter"]),
        actor=row["actor"],
        state=RedeliveryState(row["state"]),
        expected=row["expected"],
        done=row["done"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
    )
