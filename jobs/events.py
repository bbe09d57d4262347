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
LISTS = load_queries("jobs", "lists")


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


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events, and the cursor to go on after: of the last one, or of all that were there to read.

    `is_full`: there are more to read now. `is_pending`: there are some that may be read once an
    older transaction has ended.
    """

    events: tuple[Event, ...]
    cursor: str
    is_full: bool
    is_pending: bool


async def page(
    connection: Connection, scope: EventScope, cursor: str | None, rows_max: int = 500
) -> EventPage:
    """Events after `cursor` (None: the oldest kept), of transactions before which none is still
    open. A row is one or two of them.

    Raises CursorPast when retention has dropped what followed the cursor, or when the cursor lies
    ahead of the database, which was restored since; ValueError when it is malformed.
    """
    place = cursors.read_event_place(cursor)
    horizon = await _horizon(connection)
    if cursor is not None:
        horizon.check(cursor, place[0])
    query, extra = _query(scope)
    async with connection.transaction():
        # A reader that is far behind would sort all that it has missed for each page.
        await connection.execute(LISTS["dear_sorting"])
        rows = await connection.fetch(
            QUERIES[query], scope.tenant_id, str(place[0]), place[1], rows_max + 1, *extra
        )
    readable = [row for row in rows if int(row["xid"]) < horizon.xid]
    found = [event for row in readable for event in _events_of(row, place)]
    # With the cursor's own row there is at least one more.
    is_full = len(readable) > rows_max
    return EventPage(
        tuple(found),
        # Not the last event's: a reader of a few among many would look through the many each time.
        found[-1].cursor if is_full else horizon.cursor,
        is_full,
        is_pending=len(readable) < len(rows),
    )


async def after(
    connection: Connection, scope: EventScope, cursor: str | None, limit: int = 500
) -> list[Event]:
    """The first events of a page, `limit` at most."""
    return list((await page(connection, scope, cursor, limit)).events[:limit])


async def latest(connection: Connection) -> str:
    """The cursor after which only events come that are not readable yet."""
    return (await _horizon(connection)).cursor


async def assert_reached(connection: Connection, cursor: str, xid: int) -> None:
    """Raise CursorPast for a place that this database has not come to: it was restored since."""
    (await _horizon(connection)).check_reached(cursor, xid)


@dataclass(frozen=True, slots=True)
class _Horizon:
    """How far events can be read at this moment, in transactions."""

    xid: int
    ahead: int
    dropped: int

    @property
    def cursor(self) -> str:
        """After everything that is below."""
        return cursors.event_place(self.xid - 1, (1 << 63) - 1, 1)

    def check(self, cursor: str, xid: int) -> None:
        if xid < self.dropped:
            message = f"events after {cursor} are no longer kept: start again without a cursor"
            raise CursorPast(message)
        self.check_reached(cursor, xid)

    def check_reached(self, cursor: str, xid: int) -> None:
        if xid >= self.ahead:
            message = (
                f"{cursor} is of a time that this database has lost: start again without a cursor"
            )
            raise CursorPast(message)


async def _horizon(connection: Connection) -> _Horizon:
    row = await connection.fetchrow(QUERIES["event_horizon"])
    if row is None:
        raise LookupError("events_dropped has lost its only row")
    return _Horizon(int(row["horizon"]), int(row["ahead"]), int(row["dropped"]))


def _query(scope: EventScope) -> tuple[str, tuple[UUID, ...]]:
    if scope.job_id is not None:
        return "job_events", (scope.job_id,)
    if scope.batch_id is not None:
        return "batch_events", (scope.batch_id,)
    return "tenant_events", ()


def _events_of(row: asyncpg.Record, after_place: tuple[int, int, int]) -> Iterator[Event]:
    """Those of a row's one or two events that follow the place: a job without follow-ups is settled
    as soon as it is terminal.
    """
    types = [row["type"], "job.settled"] if row["settled"] else [row["type"]]
    xid, n = int(row["xid"]), row["n"]
    for part, type_ in enumerate(types):
        if (xid, n, part) <= after_place:
            continue
        yield Event(
            cursors.event_place(xid, n, part),
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
