"""Server-sent events of a job, of a batch and of the tenant."""

from typing import Annotated

from fastapi import Header, Response, status

from api import streams
from api.auth import Reader
from api.deps import WithServices
from api.errors import ProblemType, invalid
from api.event_stream import EventStream
from api.openapi import event_stream, problems
from api.routes.batches import BatchId
from api.routes.jobs import JobId
from api.routing import router as make_router
from api.streams import Phase, Position
from jobs import batches, events, lookup
from jobs.errors import CursorPast
from jobs.events import EventScope
from jobs.states import BatchState

router = make_router("events")

LastEventId = Annotated[
    str | None,
    Header(max_length=256, pattern=r"^[\x21-\x7e]+$", description="Resume after this event."),
]


@router.get(
    "/jobs/{job_id}/events",
    status_code=status.HTTP_200_OK,
    response_class=EventStream,
    responses={**event_stream(), **problems(ProblemType.NOT_FOUND)},
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
    source = streams.job_events(services, principal.tenant_id, job_id, position)
    return EventStream(source, name="job", max_s=services.settings.stream_max_s)


@router.get(
    "/batches/{batch_id}/events",
    status_code=status.HTTP_200_OK,
    response_class=EventStream,
    responses={**event_stream(), **problems(ProblemType.NOT_FOUND)},
)
async def stream_batch(
    services: WithServices, principal: Reader, batch_id: BatchId, last_event_id: LastEventId = None
) -> Response:
    """`batch.counts` whenever they changed, at last `batch.finished`; each is a whole snapshot."""
    async with services.connection() as connection:
        batch = await batches.get(connection, principal.tenant_id, batch_id)
    is_told = last_event_id == streams.batch_snapshot_id(batch)
    if batch.state is BatchState.FINISHED and is_told:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    source = streams.batch_events(services, principal.tenant_id, batch_id, last_event_id)
    return EventStream(source, name="batch", max_s=services.settings.stream_max_s)


@router.get(
    "/events",
    status_code=status.HTTP_200_OK,
    response_class=EventStream,
    responses=event_stream(ends=False),
)
async def stream_events(
    services: WithServices, principal: Reader, last_event_id: LastEventId = None
) -> Response:
    """Everything that ends or changes in the tenant, from now on or after `Last-Event-ID`."""
    if last_event_id is not None:
        async with services.connection() as connection:
            try:
                await events.after(connection, EventScope(principal.tenant_id), last_event_id, 1)
            except ValueError:
                raise _bad_id() from None
            except CursorPast:
                pass  # told as `reset` within the stream
    source = streams.tenant_events(services, principal.tenant_id, last_event_id)
    return EventStream(source, name="tenant", max_s=services.settings.stream_max_s)


def _bad_id() -> Exception:
    return invalid("/last-event-id", "no event of this stream had this id", place="header")
