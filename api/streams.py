"""What the three event streams tell. Each reads the ledger whenever it is nudged or its time to
look has come.

A job's stream is told by the job itself: its position is (attempt, phase, token), so that a reader
resumes at any time, past every retention. A batch's sends snapshots of its counts. The tenant's
reads the events table.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self
from uuid import UUID

import anyio
import orjson

from api.deps import Services
from api.event_stream import ServerEvent, event
from api.views import batch_view, job_view
from jobs import batches, events, lookup
from jobs.dispatch import UNAVAILABLE
from jobs.errors import CursorPast
from jobs.events import EventScope
from jobs.live import Signal
from jobs.model import Batch, Job, TenantId
from jobs.states import BatchState

# The longest pause between two looks at Postgres however many nudges arrive, in seconds.
LOOK_S = 0.1
# A Redis that hangs must not hold back what the ledger tells.
TOKENS_TIMEOUT_S = 1.0
_LIVE_TYPES = frozenset({"job.token", "job.progress"})


class Phase(IntEnum):
    """How much of an attempt's story was told."""

    WAITING = 0
    STARTED = 1
    ENDED = 2
    SETTLED = 3


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a reader of a job's stream stands."""

    attempt: int = -1
    phase: Phase = Phase.WAITING
    token: str = "0-0"  # noqa: S105 - a place in a stream, no secret

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a Last-Event-ID; raises ValueError."""
        attempt, phase, token = text.split(".")
        milliseconds, _, number = token.partition("-")
        return cls(int(attempt), Phase(int(phase)), f"{int(milliseconds)}-{int(number)}")

    def __str__(self) -> str:
        return f"{self.attempt}.{int(self.phase)}.{self.token}"


@dataclass(frozen=True, slots=True)
class Told:
    """An event, and where its reader stands after it."""

    event: ServerEvent
    position: Position


async def job_events(
    services: Services, tenant_id: TenantId, job_id: UUID, position: Position
) -> AsyncIterator[ServerEvent | None]:
    """Start, progress, tokens, end and settling of a job; ends once it has settled."""
    with services.hub.watch(tenant_id, job_id=job_id) as watcher:
        nudges: list[Signal] = []
        while not services.hub.is_closing:
            for told in await _tokens(services, job_id, position):
                position = told.position
                yield told.event
            for signal in nudges:
                if signal.type == "job.progress":
                    yield event("job.progress", str(position), signal.data)
            if not nudges or any(signal.type not in _LIVE_TYPES for signal in nudges):
                async with services.connection() as connection:
                    job = await lookup.get(connection, tenant_id, job_id)
                for told in _transitions(job, position):
                    position = told.position
                    yield told.event
                if job.settled:
                    return
            yield None
            await watcher.wait(services.hub.poll_s)
            nudges = watcher.take()


async def _tokens(services: Services, job_id: UUID, position: Position) -> list[Told]:
    """Tokens after the position; none while Redis is away."""
    found: list[tuple[str, int, str]] = []
    with anyio.move_on_after(TOKENS_TIMEOUT_S):
        try:
            found = await services.live.tokens_after(job_id, position.token)
        except UNAVAILABLE:
            return []
    told = []
    for cursor, attempt, text in found:
        reached = replace(position, token=cursor)
        data = {"attempt": attempt, "text": text}
        told.append(Told(event("job.token", str(reached), data), reached))
    return told


def _transitions(job: Job, position: Position) -> list[Told]:
    """What of the job's present state the reader does not know yet."""
    told: list[Told] = []
    view = orjson.loads(job_view(job).model_dump_json())
    for phase, type_ in _phases(job):
        reached = Position(job.attempt, phase, position.token)
        if (reached.attempt, reached.phase) > (position.attempt, position.phase):
            told.append(Told(event(type_, str(reached), view), reached))
    return told


def _phases(job: Job) -> list[tuple[Phase, str]]:
    phases = []
    if job.started_at is not None:
        phases.append((Phase.STARTED, "job.started"))
    if job.state.is_terminal:
        phases.append((Phase.ENDED, f"job.{job.state}"))
    if job.state.is_terminal and job.settled:
        phases.append((Phase.SETTLED, "job.settled"))
    return phases


async def batch_events(
    services: Services, tenant_id: TenantId, batch_id: UUID, last_id: str | None
) -> AsyncIterator[ServerEvent | None]:
    """The counts of a batch whenever they changed, and its end; ends with that."""
    with services.hub.watch(tenant_id, batch_id=batch_id) as watcher:
        while not services.hub.is_closing:
            async with services.connection() as connection:
                batch = await batches.get(connection, tenant_id, batch_id)
            snapshot = batch_snapshot_id(batch)
            is_finished = batch.state is BatchState.FINISHED
            if snapshot != last_id:
                last_id = snapshot
                data = orjson.loads(batch_view(batch).model_dump_json())
                yield event("batch.finished" if is_finished else "batch.counts", snapshot, data)
            if is_finished:
                return
            yield None
            await watcher.wait(services.hub.poll_s)
            await anyio.sleep(LOOK_S)


def batch_snapshot_id(batch: Batch) -> str:
    """Names a state of the counts: equal ids, equal snapshots."""
    counts = (batch.counts, batch.follow_ups)
    numbers = [n for c in counts for n in (c.total, c.scheduled, c.queued, c.succeeded, c.failed)]
    ends = [batch.counts.cancelled, batch.follow_ups.cancelled]
    return ".".join([str(batch.run), str(batch.state), *map(str, numbers + ends)])


async def tenant_events(
    services: Services, tenant_id: TenantId, cursor: str | None
) -> AsyncIterator[ServerEvent | None]:
    """The tenant's events after the cursor (None: from now on); `reset` when some were dropped
    meanwhile.
    """
    scope = EventScope(tenant_id)
    with services.hub.watch(tenant_id) as watcher:
        while not services.hub.is_closing:
            async with services.connection() as connection:
                if cursor is None:
                    cursor = await events.latest(connection)
                try:
                    found = await events.after(connection, scope, cursor)
                except CursorPast:
                    cursor = await events.latest(connection)
                    found = []
                    yield event("reset", cursor, {"detail": "the events after your place are gone"})
            for item in found:
                cursor = item.cursor
                yield event(item.type, item.cursor, _envelope(item))
            yield None
            if not found:
                await watcher.wait(services.hub.poll_s)
                await anyio.sleep(LOOK_S)
                watcher.take()


def _envelope(item: events.Event) -> dict[str, object]:
    """The body that webhooks have, too: type, timestamp, data."""
    data = dict(item.data)
    if item.job_id is not None:
        data.setdefault("job_id", str(item.job_id))
    if item.batch_id is not None:
        data.setdefault("batch_id", str(item.batch_id))
    return {"type": item.type, "timestamp": item.at, "data": data}
