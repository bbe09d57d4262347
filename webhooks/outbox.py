"""What is owed: claimed under a lease, and finished in one transaction with its line in the log.

Two deliverers never hold one row at once, and a dead one's rows come back when its lease ends. Also
the other way in: events are fanned out to the endpoints that want them. Sends nothing itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from jobs import events
from jobs.events import NewEvent
from jobs.model import JsonObject
from runtime.postgres import Connection
from runtime.sql import load_queries
from webhooks import rows
from webhooks.lanes import Room
from webhooks.model import Answer, Endpoint, Owed

QUERIES = load_queries("webhooks")
OUTBOX = load_queries("webhooks", "outbox")
# Longer than a request may take and its outcome may wait for Postgres to come back.
LEASE_S = 60.0
FAN_OUT_PAGE = 1000
GONE = "gone"
FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What there is to do at `now`. `due_in_s` is negative when something is due, None when nothing
    is owed; of the open circuits some wait for their probe, of others it is due.
    """

    now: datetime
    has_events: bool
    due_in_s: float | None
    has_redeliveries: bool
    circuits_waiting: int
    circuits_due: int


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
        OUTBOX["claim_owed"],
        now,
        room.total,
        [lane.name for lane in room.known],
        [lane.free for lane in room.known],
        [lane.is_proven for lane in room.known],
        LEASE_S,
        room.unproven,
    )
    return [rows.owed(row) for row in claimed]


async def deliver(
    connection: Connection, owed: Owed, answer: Answer, *, closing: Sequence[str], now: datetime
) -> bool:
    """The receiver accepted: it is in the log, and the circuits of the lanes `closing` are closed.

    False when the lease had passed to another deliverer. Commits by itself outside of a
    transaction.
    """
    arguments = _log_line(owed, answer)
    done = await connection.fetchval(OUTBOX["deliver_owed"], *arguments, closing, now)
    return done is not None


async def retry(connection: Connection, owed: Owed, answer: Answer, *, due_at: datetime) -> bool:
    """The receiver did not accept: due again. False when the lease had passed to another."""
    await connection.execute(OUTBOX["log_attempt"], *_log_line(owed, answer))
    return (
        await connection.fetchval(OUTBOX["retry_owed"], owed.id, owed.attempt, due_at) is not None
    )


async def bury(
    connection: Connection, owed: Owed, answer: Answer, *, reason: str, now: datetime
) -> bool:
    """No further attempt: a dead letter. False when the lease had passed to another deliverer."""
    await connection.execute(OUTBOX["log_attempt"], *_log_line(owed, answer))
    buried = await connection.fetchval(OUTBOX["bury_owed"], owed.id, owed.attempt, reason, now)
    return buried is not None


async def discard(connection: Connection, owed: Owed, *, reason: str, now: datetime) -> int:
    """Dead letters without an attempt, this one and up to a thousand of its endpoint's: that is
    disabled or deleted. Answers how many.
    """
    gone = await connection.fetch(
        OUTBOX["discard_owed"], owed.id, owed.attempt, owed.endpoint_id, reason, now
    )
    return len(gone)


async def disable(
    connection: Connection,
    endpoint_id: UUID,
    *,
    reason: str,
    now: datetime,
    failing_since: datetime | None = None,
) -> Endpoint | None:
    """Disable an endpoint, and tell; None when it was disabled or deleted already."""
    row = await connection.fetchrow(QUERIES["disable_endpoint"], endpoint_id, now, reason)
    if row is None:
        return None
    endpoint = rows.endpoint(row)
    data: JsonObject = {
        "endpoint_id": str(endpoint.id),
        "url": endpoint.url,
        "reason": reason,
        "failing_since": None if failing_since is None else failing_since.isoformat(),
        "links": {"webhook": f"/v1/webhooks/{endpoint.id}"},
    }
    await events.add(connection, [NewEvent(endpoint.tenant_id, "webhook.disabled", data)])
    return endpoint


async def database_now(connection: Connection, now: datetime | None = None) -> datetime:
    """The database's clock; `now` when a test owns the clock."""
    moment: datetime = await connection.fetchval(QUERIES["database_now"], now)
    return moment


async def look(connection: Connection, now: datetime | None = None) -> Outlook:
    """What there is to do; changes nothing."""
    row = await connection.fetchrow(OUTBOX["look"], now)
    if row is None:
        detail = "a SELECT of one row answered none"
        raise RuntimeError(detail)
    return Outlook(
        now=row["now"],
        has_events=row["has_events"],
        due_in_s=row["due_in_s"],
        has_redeliveries=row["has_redeliveries"],
        circuits_waiting=row["waiting"],
        circuits_due=row["due"],
    )


def _log_line(owed: Owed, answer: Answer) -> tuple[object, ...]:
    return (
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
