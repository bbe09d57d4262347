"""/v1/schedules: jobs by the clock; make, change, pause, trigger, foresee and review them."""

from typing import Annotated
from uuid import UUID

from fastapi import Body, Header, Path, Query, Response, status

from api import paging
from api.auth import Reader, Submitter
from api.deps import LIST_DEFAULT, Cursor, Limit, WithServices
from api.errors import ProblemType
from api.openapi import problems
from api.quotas import Counted, admit_one
from api.routes.pools import PauseRequest
from api.routing import router as make_router
from api.schedule_requests import SchedulePatch, ScheduleRequest, patched, spec_of
from api.schedule_views import DueView, FireView, ScheduleView, fire_view, schedule_view
from api.views import Page
from jobs.enqueue import ready_of
from schedules import store
from schedules.model import Schedule

router = make_router("schedules")

ScheduleId = Annotated[UUID, Path(description="The schedule's id.")]
IfMatch = Annotated[
    str | None,
    Header(
        pattern=r'^("[0-9]{1,9}"|\*)$',
        description="The `ETag` that was read: 412 if it changed since.",
    ),
]


@router.post(
    "/schedules", status_code=status.HTTP_201_CREATED, responses=problems(ProblemType.CONFLICT)
)
async def create_schedule(
    services: WithServices, principal: Submitter, schedule: ScheduleRequest, response: Response
) -> ScheduleView:
    """Make a schedule; it first fires at the first time of its timetable from now."""
    spec = spec_of(services, principal, schedule)
    async with services.transaction() as connection:
        await admit_one(connection, principal.tenant_id, principal.quotas, Counted.SCHEDULES)
        made = await store.create(connection, principal.tenant_id, spec)
    response.headers["Location"] = f"/v1/schedules/{made.id}"
    return _answer(made, response)


@router.get("/schedules")
async def list_schedules(
    services: WithServices, principal: Reader, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[ScheduleView]:
    """The tenant's schedules in the order they were made."""
    after = paging.decode_uuid("schedules", cursor)
    async with services.connection() as connection:
        found = await store.list_schedules(
            connection, principal.tenant_id, after=after, limit=limit
        )
    return Page[ScheduleView](
        data=[schedule_view(schedule) for schedule in found],
        next_cursor=paging.next_cursor("schedules", found, limit, lambda row: row.id),
    )


@router.get("/schedules/{schedule_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_schedule(
    services: WithServices, principal: Reader, schedule_id: ScheduleId, response: Response
) -> ScheduleView:
    """A schedule."""
    async with services.connection() as connection:
        found = await store.get(connection, principal.tenant_id, schedule_id)
    return _answer(found, response)


@router.patch(
    "/schedules/{schedule_id}",
    responses=problems(
        ProblemType.NOT_FOUND, ProblemType.CONFLICT, ProblemType.PRECONDITION_FAILED
    ),
)
async def change_schedule(
    services: WithServices,
    principal: Submitter,
    schedule_id: ScheduleId,
    patch: SchedulePatch,
    response: Response,
    if_match: IfMatch = None,
) -> ScheduleView:
    """Change a schedule."""
    version = None if if_match in {None, "*"} else int(str(if_match).strip('"'))
    async with services.transaction() as connection:
        old = await store.get(connection, principal.tenant_id, schedule_id)
        spec = patched(services, principal, old.spec, patch)
        changed = await store.update(
            connection, principal.tenant_id, schedule_id, spec, version=version or old.version
        )
    return _answer(changed, response)


@router.delete(
    "/schedules/{schedule_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND),
)
async def delete_schedule(
    services: WithServices, principal: Submitter, schedule_id: ScheduleId
) -> None:
    """Remove a schedule; jobs that it made go on."""
    async with services.transaction() as connection:
        await store.delete(connection, principal.tenant_id, schedule_id)


@router.post("/schedules/{schedule_id}/pause", responses=problems(ProblemType.NOT_FOUND))
async def pause_schedule(
    services: WithServices,
    principal: Submitter,
    schedule_id: ScheduleId,
    pause: Annotated[PauseRequest | None, Body()] = None,
) -> ScheduleView:
    """Stop firing by time until it is resumed. Idempotent."""
    reason = (pause and pause.reason) or ""
    async with services.transaction() as connection:
        paused = await store.pause(
            connection, principal.tenant_id, schedule_id, actor=principal.name, reason=reason
        )
    return schedule_view(paused)


@router.post("/schedules/{schedule_id}/resume", responses=problems(ProblemType.NOT_FOUND))
async def resume_schedule(
    services: WithServices, principal: Submitter, schedule_id: ScheduleId
) -> ScheduleView:
    """Fire by time again, from the next time of the timetable. Idempotent."""
    async with services.transaction() as connection:
        return schedule_view(await store.resume(connection, principal.tenant_id, schedule_id))


@router.post(
    "/schedules/{schedule_id}/trigger",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(ProblemType.NOT_FOUND, ProblemType.QUEUE_FULL),
)
async def trigger_schedule(
    services: WithServices, principal: Submitter, schedule_id: ScheduleId, response: Response
) -> FireView:
    """Fire now, paused or not, besides the timetable."""
    async with services.transaction() as connection:
        fire, accepted = await store.trigger(
            connection,
            principal.tenant_id,
            schedule_id,
            kinds=services.kinds,
            actor=principal.name,
        )
    services.announcer.announce(ready_of([accepted]))
    response.headers["Location"] = f"/v1/jobs/{accepted.id}"
    return fire_view(fire)


@router.get("/schedules/{schedule_id}/preview", responses=problems(ProblemType.NOT_FOUND))
async def preview_schedule(
    services: WithServices,
    principal: Reader,
    schedule_id: ScheduleId,
    n: Annotated[int, Query(ge=1, le=store.PREVIEW_MAX)] = 5,
) -> Page[DueView]:
    """The next times at which it will fire."""
    async with services.connection() as connection:
        found = await store.preview(connection, principal.tenant_id, schedule_id, n)
    return Page[DueView](data=[DueView.model_validate(due) for due in found])


@router.get("/schedules/{schedule_id}/runs", responses=problems(ProblemType.NOT_FOUND))
async def list_runs(
    services: WithServices,
    principal: Reader,
    schedule_id: ScheduleId,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[FireView]:
    """Past fires, newest first."""
    before = paging.decode("runs", cursor, paging.moment)
    async with services.connection() as connection:
        found = await store.runs(
            connection, principal.tenant_id, schedule_id, before=before, limit=limit
        )
    return Page[FireView](
        data=[fire_view(fire) for fire in found],
        next_cursor=paging.next_cursor("runs", found, limit, lambda fire: fire.fire_at.isoformat()),
    )


def _answer(schedule: Schedule, response: Response) -> ScheduleView:
    response.headers["ETag"] = f'"{schedule.version}"'
    return schedule_view(schedule)
