"""What watchers see of jobs, batches and events: one look and one encoding for all of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import batched
from typing import NamedTuple
from uuid import UUID

import anyio
import orjson

from api.availability import Availability
from api.event_stream import Chunk, encode_event
from api.looks import Looks
from api.views import batch_view, job_view
from jobs import batches, events, lookup
from jobs.dispatch import UNAVAILABLE
from jobs.errors import CursorPast
from jobs.events import Event, EventScope
from jobs.live import LiveStream, Progress, Token
from jobs.model import Batch, Job, TenantId
from jobs.states import BatchState
from runtime.postgres import Connection, Pool

ACQUIRE_TIMEOUT_S = 4.0
# Of one round trip.
ROWS_MAX = 200
EVENT_ROWS_MAX = 500
# What is sent at once is also what a slow reader's buffer holds at most.
EVENTS_A_CHUNK = 200
PROGRESS_TIMEOUT_S = 0.25
# A Redis that hangs must not hold back what the ledger tells.
TOKENS_TIMEOUT_S = 1.0
DIGEST_BYTES = 9


class Place(NamedTuple):
    """A job or a batch of a tenant."""

    tenant_id: TenantId
    id: UUID


class EventsAfter(NamedTuple):
    """Events that follow a cursor (None: the oldest kept)."""

    scope: EventScope
    cursor: str | None


class TokensAfter(NamedTuple):
    """Tokens of a job that follow a place in its stream."""

    job_id: UUID
    token: str


@dataclass(eq=False, slots=True)
class SeenJob:
    """A job at one moment, and how far it is."""

    job: Job
    progress: Progress | None
    _etag: str | None = field(default=None, init=False)
    _body: bytes | None = field(default=None, init=False)

    @property
    def etag(self) -> str:
        """Differs whenever anything in the body does."""
        if self._etag is None:
            seen = orjson.dumps(self.progress)
            self._etag = f'"{lookup.version(self.job)}-{_digest(seen)}"'
        return self._etag

    @property
    def is_final(self) -> bool:
        """Only a retry could change it."""
        return self.job.settled

    @property
    def body(self) -> bytes:
        """The job as JSON, in one line."""
        if self._body is None:
            self._body = job_view(self.job, self.progress).model_dump_json().encode()
        return self._body


class SeenBatch:
    """A batch and its counts at one moment."""

    __slots__ = ("as_of", "body", "chunk", "digest", "is_final")

    def __init__(self, batch: Batch) -> None:
        self.is_final = batch.state is BatchState.FINISHED
        self.as_of = batch.as_of
        self.body = batch_view(batch).model_dump_json().encode()
        self.digest = _digest(self.body)
        self.chunk = encode_event(
            "batch.finished" if self.is_final else "batch.counts",
            f"{batch.as_of:x}-{self.digest}",
            self.body,
        )

    @property
    def etag(self) -> str:
        """Differs whenever anything in the body does."""
        return f'"{self.digest}"'

    def is_told_by(self, event_id: str | None) -> bool:
        """Whether an event with this id has told all of this already."""
        return event_id is not None and event_id.rpartition("-")[2] == self.digest


@dataclass(frozen=True, slots=True)
class SeenEvents:
    """A page of events as it goes over the wire."""

    chunks: Sequence[Chunk]
    cursor: str
    is_full: bool = False
    is_pending: bool = False


type Tokens = Sequence[Token]


class Sights:
    """All that can be looked at together, of all tenants."""

    def __init__(self, postgres: Pool, live: LiveStream, availability: Availability) -> None:
        self._postgres = postgres
        self._live = live
        looks = partial(Looks, availability=availability)
        self.jobs: Looks[Place, SeenJob] = looks(self._read_jobs, keys_max=ROWS_MAX)
        self.batches: Looks[Place, SeenBatch] = looks(self._read_batches, keys_max=ROWS_MAX)
        self.events: Looks[EventsAfter, SeenEvents] = looks(self._read_events, keys_max=1)
        self.tokens: Looks[TokensAfter, Tokens] = looks(self._read_tokens, keys_max=ROWS_MAX)

    async def run(self) -> None:
        """Look for ever; owned by the application's task group."""
        async with anyio.create_task_group() as group:
            for looks in (self.jobs, self.batches, self.events, self.tokens):
                group.start_soon(looks.run)

    async def progress_of(self, jobs: Iterable[Job]) -> Mapping[UUID, Progress]:
        """How far those of the jobs are that run; a courtesy, which a Redis that hangs may not hold
        back.
        """
        running = [j.id for j in jobs if j.started_at is not None and not j.state.is_terminal]
        with anyio.move_on_after(PROGRESS_TIMEOUT_S):
            return await self._live.progress_of(running)
        return {}

    async def _read_jobs(self, places: Sequence[Place]) -> dict[Place, SeenJob]:
        found: list[Job] = []
        async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            for tenant_id, ids in _by_tenant(places).items():
                found += await lookup.get_many(connection, tenant_id, ids)
        progress = await self.progress_of(found)
        return {Place(j.tenant_id, j.id): SeenJob(j, progress.get(j.id)) for j in found}

    async def _read_batches(self, places: Sequence[Place]) -> dict[Place, SeenBatch]:
        seen: dict[Place, SeenBatch] = {}
        async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            for tenant_id, ids in _by_tenant(places).items():
                for batch in await batches.get_many(connection, tenant_id, ids):
                    seen[Place(tenant_id, batch.id)] = SeenBatch(batch)
        return seen

    async def _read_events(self, keys: Sequence[EventsAfter]) -> dict[EventsAfter, SeenEvents]:
        async with self._postgres.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return {key: await _page(connection, key) for key in keys}

    async def _read_tokens(self, keys: Sequence[TokensAfter]) -> dict[TokensAfter, Tokens]:
        with anyio.move_on_after(TOKENS_TIMEOUT_S):
            try:
                return dict(zip(keys, await self._live.tokens_after(keys), strict=True))
            except UNAVAILABLE:
                pass
        return {}


async def _page(connection: Connection, key: EventsAfter) -> SeenEvents:
    try:
        page = await events.page(connection, key.scope, key.cursor, EVENT_ROWS_MAX)
    except CursorPast:
        cursor = await events.latest(connection)
        data = orjson.dumps({"detail": "the events after your place are gone"})
        return SeenEvents([encode_event("reset", cursor, data)], cursor)
    encoded = (encode_event(e.type, e.cursor, orjson.dumps(_envelope(e))).data for e in page.events)
    chunks = [Chunk(b"".join(some), len(some)) for some in batched(encoded, EVENTS_A_CHUNK)]
    return SeenEvents(chunks, page.cursor, page.is_full, page.is_pending)


def _envelope(event: Event) -> dict[str, object]:
    """The body that webhooks have, too: type, timestamp, data."""
    data = dict(event.data)
    if event.job_id is not None:
        data.setdefault("job_id", str(event.job_id))
    if event.batch_id is not None:
        data.setdefault("batch_id", str(event.batch_id))
    return {"type": event.type, "timestamp": event.at, "data": data}


def _by_tenant(places: Sequence[Place]) -> Mapping[TenantId, list[UUID]]:
    ids: defaultdict[TenantId, list[UUID]] = defaultdict(list)
    for place in places:
        ids[place.tenant_id].append(place.id)
    return ids


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=DIGEST_BYTES).hexdigest()
