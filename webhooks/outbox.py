"""What is owed: claimed under a lease, and finished in one transaction with its line in the log.

Two deliverers never hold one row at once, and a dead one's rows come back when its lease ends. Also
the other way in: events are fanned out to the endpoints that want them. Sends nothing itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from jobs import events
from jobs.events import NewEvent
from jobs.model import JsonObject, TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks import rows
from webhooks.errors import DeliveryNotFound
from webhooks.model import Answer, Delivery, DeliveryAttempt, DeliveryState, Endpoint, Owed

QUERIES = load_queries("webhooks")
# Longer than a request may take and its outcome may wait for Postgres to come back.
LEASE_S = 60.0
FAN_OUT_PAGE = 1000
GONE = "gone"


@dataclass(frozen=True, slots=True)
class Room:
    """How many rows a deliverer can take: in all, of a host by default, and of hosts it is busy
    with.
    """

    total: int
    per_host: int
    free: Mapping[str, int]


async def fan_out(
    connection: Connection, *, page: int = FAN_OUT_PAGE, now: datetime | None = None
) -> tuple[int, int]:
    """Owe the next events to the endpoints that want them; answers how many were read and owed.

    Nothing is read while another process does it. Commits by itself outside of a transaction.
    """
    row = await connection.fetchrow(QUERIES["fan_out"], page, now)
    return (0, 0) if row is None else (row["read"], row["owed"])


async def claim(connection: Connection, room: Room, *, now: datetime) -> list[Owed]:
    """Lease what is due, at most what there is room for."""
    claimed = await connection.fetch(
        QUERIES["claim_owed"],
        now,
        room.total,
        room.per_host,
        list(room.free),
        list(room.free.values()),
        LEASE_S,
    )
    return [rows.owed(row) for row in claimed]


async def deliver(connection: Connection, owed: Owed, answer: Answer, *, now: datetime) -> bool:
    """The receiver accepted. False when the lease had passed to another deliverer."""
    await _log(connection, owed, answer)
    return await _finish(connection, owed, None, now, failures=0)


async def retry(connection: Connection, owed: Owed, answer: Answer, *, due_at: datetime) -> bool:
    """The receiver did not accept: due again. False when the lease had passed to another."""
    await _log(connection, owed, answer)
    return (
        await connection.fetchval(QUERIES["retry_owed"], owed.id, owed.attempt, due_at) is not None
    )


async def bury(
    connection: Connection, owed: Owed, answer: Answer, *, reason: str, now: datetime
) -> bool:
    """No further attempt: a dead letter. False when the lease had passed to another deliverer."""
    await _log(connection, owed, answer)
    return await _finish(connection, owed, reason, now, failures=1)


async def discard(connection: Connection, owed: Owed, *, reason: str, now: datetime) -> bool:
    """A dead letter without an attempt: the endpoint was disabled meanwhile."""
    return await _finish(connection, owed, reason, now, failures=0)


async def disable(connection: Connection, endpoint_id: UUID, *, now: datetime) -> Endpoint | None:
    """Disable an endpoint that said 410, and tell; None when it was disabled or deleted already."""
    row = await connection.fetchrow(QUERIES["disable_endpoint"], endpoint_id, now, GONE)
    if row is None:
        return None
    endpoint = rows.endpoint(row)
    data: JsonObject = {
        "endpoint_id": str(endpoint.id),
        "url": endpoint.url,
        "reason": GONE,
        "links": {"webhook": f"/v1/webhooks/{endpoint.id}"},
    }
    await events.add(connection, [NewEvent(endpoint.tenant_id, "webhook.disabled", data)])
    return endpoint


async def deliveries(
    connection: Connection,
    tenant_id: TenantId,
    *,
    endpoint_id: UUID | None = None,
    state: DeliveryState | None = None,
    before: Delivery | tuple[datetime, UUID] | None = None,
    limit: int = 100,
) -> list[Delivery]:
    """Deliveries, newest first: those older than `before`, (occurred_at, id) of a page's last
    one.
    """
    at, id_ = (
        (before.occurred_at, before.id) if isinstance(before, Delivery) else before or (None, None)
    )
    found = await connection.fetch(
        QUERIES["list_deliveries"], tenant_id, endpoint_id, state, at, id_, limit
    )
    return [rows.delivery(row) for row in found]


async def get_delivery(
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

    One that is being sent right now is left alone. Raises DeliveryNotFound.
    """
    owed = await connection.fetchval(QUERIES["owe_again"], tenant_id, delivery_id, now)
    if owed is None:
        await connection.execute(QUERIES["hasten"], tenant_id, delivery_id, now)
    delivery, _ = await get_delivery(connection, tenant_id, delivery_id)
    return delivery


async def database_now(connection: Connection, now: datetime | None = None) -> datetime:
    """The database's clock; `now` when a test owns the clock."""
    moment: datetime = await connection.fetchval(QUERIES["database_now"], now)
    return moment


async def next_owed_in_s(connection: Connection, now: datetime | None = None) -> float | None:
    """Seconds until something is due (negative: it is); None when nothing is owed."""
    seconds: float | None = await connection.fetchval(QUERIES["next_owed_in_s"], now)
    return seconds


async def prune(connection: Connection, *, before: datetime, limit: int = 10_000) -> int:
    """Forget up to `limit` finished deliveries and as many lines of the log; answers how many."""
    gone = [
        await connection.execute(QUERIES[name], before, limit)
        for name in ("prune_deliveries", "prune_attempts")
    ]
    return sum(int(status.rpartition(" ")[2]) for status in gone)


async def _finish(
    connection: Connection, owed: Owed, reason: str | None, now: datetime, *, failures: int
) -> bool:
    state = DeliveryState.DELIVERED if reason is None else DeliveryState.DEAD
    finished: Record | None = await connection.fetchrow(
        QUERIES["finish_owed"], owed.id, owed.attempt, failures, state, reason, now
    )
    return finished is not None


async def _log(connection: Connection, owed: Owed, answer: Answer) -> None:
    await connection.execute(
        QUERIES["log_attempt"],
        owed.id,
        owed.attempt,
        owed.tenant_id,
        answer.started_at,
        answer.duration_s,
        owed.url,
        answer.request_headers,
        answer.request_body,
        answer.address,
        answer.status,
        answer.response_headers,
        answer.response_body,
        answer.error_type,
        answer.error_detail,
    )
