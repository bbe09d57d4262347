"""Server-sent events of a job, of a batch and of the tenant."""

from collections.abc import AsyncGenerator
from typing import Annotated
from uuid import UUID

from fastapi import Header, Query, Response, status

from api import streams, waiting
from api.auth import Principal, Reader
from api.deps import Services, WithServices
from api.errors import ProblemType, invalid
from api.event_stream import Chunk, EventStream, StreamReader
from api.openapi import event_stream, problems
from api.routes.batches import BatchId
from api.routes.jobs import JobId
from api.routing import router as make_router
from api.sights import Place
from api.streams import Phase, Position
from jobs import batches, events, lookup
from jobs.errors import CursorPast
from jobs.events import EventScope

router = make_router("events")

LastEventId = Annotated[
    str | None,
    Header(max_length=256, pattern=r"^[\x21-\x7e]+$", description="Resume after this event."),
]


@router.get(
    "/jobs/{job_id}/events",
    status_code=status.HTTP_200_OK,
    response_class=EventStream,
    responses={
        **event_stream(),
        **problems(ProblemType.NOT_FOUND, ProblemType.TOO_MANY_WATCHERS),
    },
)
async def stream_job(
    services: WithServices, principal: Reader, job_id: JobId, last_event_id: LastEventId = None
) -> Response:
    """`job.started`, `job.progress`, `job.token`, `job.succeeded|failed|cancelled`,
    `job.settled`.
    """
    try:
        position = Position.parse(last_event_id) if last_event_id else Position()
    except ValueError:
        raise _bad_id() from None
    async with services.connection() as connection:
        job = await lookup.get(connection, principal.tenant_id, job_id)
    if job.settled and (position.attempt, position.phase) >= (job.attempt, Phase.SETTLED):
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    source = streams.job_events(services, Place(principal.tenant_id, job_id), position)
    return _stream(services, principal, "job", source)


@router.get(
    "/batches/{batch_id}/events",
    status_code=status.HTTP_200_OK,
    response_class=EventStream,
    responses={
        **event_stream(),
        **problems(ProblemType.NOT_FOUND, ProblemType.TOO_MANY_WATCHERS),
    },
)
async def stream_batch(
    services: WithServices, principal: Reader, batch_id: BatchId, last_event_id: LastEventId = None
) -> Response:
    """`batch.counts` whenever they changed, at last `batch.finished`; each is a whole snapshot."""
    place = Place(principal.tenant_id, batch_id)
    seen = await waiting.read_batch(services, place)
    if seen.is_final and seen.is_told_by(last_event_id):
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    source = streams.batch_events(services, place, last_event_id)
    return _stream(services, principal, "batch", source)


@router.get(
    "/events",
    status_code=status.HTTP_200_OK,
    response_class=EventStream,
    responses={
        **event_stream(ends=False),
        **problems(ProblemType.NOT_FOUND, ProblemType.TOO_MANY_WATCHERS),
    },
)
async def stream_events(
    services: WithServices,
    principal: Reader,
    batch_id: Annotated[
        UUID | None, Query(description="Only what ends in this batch, from its beginning on.")
    ] = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Everything that ends or changes in the tenant, from now on or after `Last-Event-ID`. With
    `batch_id` every end of a job in the batch, and its own, from the beginning on.
    """
    scope = EventScope(principal.tenant_id, batch_id)
    cursor = last_event_id
    async with services.connection() as connection:
        if batch_id is not None:
            await batches.get(connection, principal.tenant_id, batch_id)
        if cursor is not None:
            try:
                await events.after(connection, scope, cursor, 1)
            except ValueError:
                raise _bad_id() from None
            except CursorPast:
                pass  # told as `reset` within the stream
        elif batch_id is None:
            cursor = await events.latest(connection)
    source = streams.ledger_events(services, scope, cursor)
    return _stream(services, principal, "tenant", source)


def _stream(
    services: Services, principal: Principal, name: str, source: AsyncGenerator[Chunk]
) -> EventStream:
    max_s = services.settings.stream_max_s
    return EventStream(source, StreamReader(principal.tenant_id, services.places, name, max_s))


def _bad_id() -> Exception:
    return invalid("/last-event-id", "no event of this stream had this id", place="header")
