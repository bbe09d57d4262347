"""Events: terminal transitions and document changes, in an order that a reader can resume from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from jobs import cursors
from jobs.errors import CursorPast
from jobs.model import JsonValue, TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("jobs")


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
    await connection.execute(
        QUERIES["add_events"],
        [event.tenant_id for event in events],
        [event.type for event in events],
        [event.job_id for event in events],
        [event.batch_id for event in events],
        [event.data for event in events],
    )


async def after(
    connection: Connection, scope: EventScope, cursor: str | None, limit: int = 500
) -> list[Event]:
    """Events after `cursor` (None: the oldest kept), of transactions before which none is still
    open.

    Raises CursorPast when retention has dropped what followed the cursor, or when the cursor lies
    ahead of the database, which was restored since; ValueError when it is malformed.
    """
    place = cursors.read_event_place(cursor)
    if cursor is not None:
        await _assert_kept(connection, cursor, place[0])
    query, extra = _query(scope)
    rows = await connection.fetch(
        QUERIES[query], scope.tenant_id, str(place[0]), place[1], limit + 1, *extra
    )
    events: list[Event] = []
    for row in rows:
        row_place = int(row["xid"]), row["n"]
        events += [
            event
            for part, event in enumerate(_events_of(row))
            if cursor is None or (*row_place, part) > place
        ]
    return events[:limit]


async def latest(connection: Connection) -> str:
    """The cursor after which only events come that are not readable yet."""
    xid = int(await connection.fetchval(QUERIES["latest_event"]))
    return cursors.event_place(xid - 1, (1 << 63) - 1, 1)


async def _assert_kept(connection: Connection, cursor: str, xid: int) -> None:
    if xid < int(await connection.fetchval(QUERIES["events_dropped"])):
        message = f"events after {cursor} are no longer kept: start again without a cursor"
        raise CursorPast(message)
    await assert_reached(connection, cursor, xid)


async def assert_reached(connection: Connection, cursor: str, xid: int) -> None:
    """Raise CursorPast for a place that this database has not come to: it was restored since."""
    if xid >= int(await connection.fetchval(QUERIES["next_transaction"])):
        message = f"{cursor} is of a time that this database has lost: start again without a cursor"
        raise CursorPast(message)


def _query(scope: EventScope) -> tuple[str, tuple[UUID, ...]]:
    if scope.job_id is not None:
        return "job_events", (scope.job_id,)
    if scope.batch_id is not None:
        return "batch_events", (scope.batch_id,)
    return "tenant_events", ()


def _events_of(row: asyncpg.Record) -> Iterator[Event]:
    """The one or two events of a row: a job without follow-ups is settled as soon as it is
    terminal.
    """
    types = [row["type"], "job.settled"] if row["settled"] else [row["type"]]
    for part, type_ in enumerate(types):
        yield Event(
            cursors.event_place(int(row["xid"]), row["n"], part),
            type_,
            row["at"],
            row["job_id"],
            row["batch_id"],
            _data(row) if row["data"] is None else row["data"],
        )


def _data(row: asyncpg.Record) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = {"kind": row["kind"]}
    for name in ("job_id", "batch_id"):
        if row[name] is not None:
            data[name] = str(row[name])
    return data
