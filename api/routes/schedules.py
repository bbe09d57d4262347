"""/v1/schedules: jobs by the clock; make, change, pause, trigger, foresee and review them."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Body, Header, Path, Query, Response, status
from pydantic import ConfigDict, Field

from api import paging
from api.auth import Principal, Reader, Submitter
from api.deps import LIST_DEFAULT, Cursor, Limit, Services, WithServices
from api.errors import Problem, ProblemType, invalid, invalid_fields
from api.job_requests import JobRequest, RequestModel, checker
from api.openapi import problems
from api.routes.pools import PauseRequest
from api.routing import router as make_router
from api.views import AnyObject, Page, View
from jobs.enqueue import ready_of
from jobs.kinds import Text
from jobs.model import NewJob
from jobs.states import JobState
from schedules import store
from schedules.model import (
    Adaptive,
    Cause,
    Cron,
    Every,
    Fire,
    FireOutcome,
    Misfire,
    Overlap,
    Schedule,
    ScheduleSpec,
    Timing,
)
from schedules.spec import job_as_json

router = make_router("schedules")

ScheduleId = Annotated[UUID, Path(description="The schedule's id.")]
IfMatch = Annotated[
    str | None,
    Header(
        pattern=r'^("[0-9]{1,9}"|\*)$',
        description="The `ETag` that was read: 412 if it changed since.",
    ),
]
Period = Annotated[float, Field(ge=1, le=366 * 86_400)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Expression = Annotated[
    Text,
    Field(min_length=1, max_length=256, examples=["0 6 * * *"], description="Five fields of cron."),
]
Zone = Annotated[Text, Field(min_length=1, max_length=64, examples=["Europe/Berlin"])]


class AdaptiveRequest(RequestModel):
    """A period between two bounds that follows how often the pages change."""

    min_s: Period
    max_s: Period


class ScheduleRequest(RequestModel):
    """A schedule: a job, and exactly one of `cron`, `every_s` and `adaptive`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "docs every morning",
                    "cron": "0 6 * * *",
                    "timezone": "Europe/Berlin",
                    "job": {"kind": "crawl", "payload": {"url": "https://example.org/"}},
                }
            ]
        }
    )

    name: Name
    job: JobRequest
    cron: Expression | None = None
    every_s: Period | None = None
    adaptive: AdaptiveRequest | None = None
    timezone: Zone = "UTC"
    jitter_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    misfire: Literal["skip", "once", "all"] = "once"
    overlap: Literal["skip", "queue"] = "skip"


class SchedulePatch(RequestModel):
    """What changes; fields left out stay. A new timing is counted from now."""

    name: Name | None = None
    job: JobRequest | None = None
    cron: Expression | None = None
    every_s: Period | None = None
    adaptive: AdaptiveRequest | None = None
    timezone: Zone | None = None
    jitter_s: Annotated[float, Field(ge=0, le=86_400)] | None = None
    misfire: Literal["skip", "once", "all"] | None = None
    overlap: Literal["skip", "queue"] | None = None


class AdaptiveView(View):
    """Bounds of an adaptive period, in seconds."""

    min_s: float
    max_s: float


class ScheduleView(View):
    """A schedule. `next_fire_at` is its next time by the timetable, `due_at` the same with its
    jitter.
    """

    id: UUID
    name: str
    job: AnyObject
    cron: str | None
    every_s: float | None
    adaptive: AdaptiveView | None
    interval_s: float | None
    timezone: str
    jitter_s: float
    misfire: Misfire
    overlap: Overlap
    next_fire_at: datetime | None
    due_at: datetime | None
    last_fire_at: datetime | None
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]


class FireView(View):
    """One fire, what it led to, and how its job ended."""

    model_config = ConfigDict(from_attributes=True)

    schedule_id: UUID
    fire_at: datetime
    decided_at: datetime
    cause: Cause
    actor: str | None
    outcome: FireOutcome
    detail: str | None
    job_id: UUID | None
    job_state: JobState | None
    settled_at: datetime | None


class DueView(View):
    """A time to come: by the timetable, and with its jitter."""

    model_config = ConfigDict(from_attributes=True)

    fire_at: datetime
    due_at: datetime


@router.post(
    "/schedules", status_code=status.HTTP_201_CREATED, responses=problems(ProblemType.CONFLICT)
)
async def create_schedule(
    services: WithServices, principal: Submitter, schedule: ScheduleRequest, response: Response
) -> ScheduleView:
    """Make a schedule; it first fires at the first time of its timetable from now."""
    spec = ScheduleSpec(
        name=schedule.name,
        job=_job(services, principal, schedule.job),
        timing=_timing(schedule) or _no_timing(),
        timezone=schedule.timezone,
        jitter_s=schedule.jitter_s,
        misfire=Misfire(schedule.misfire),
        overlap=Overlap(schedule.overlap),
    )
    async with services.transaction() as connection:
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
        spec = _patched(services, principal, old.spec, patch)
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
    return _fire_view(fire)


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
        data=[_fire_view(fire) for fire in found],
        next_cursor=paging.next_cursor("runs", found, limit, lambda fire: fire.fire_at.isoformat()),
    )


def schedule_view(schedule: Schedule) -> ScheduleView:
    """A schedule as clients see it."""
    spec, timing, pause = schedule.spec, schedule.spec.timing, schedule.pause
    path = f"/v1/schedules/{schedule.id}"
    return ScheduleView(
        id=schedule.id,
        name=spec.name,
        job=dict(job_as_json(spec.job)),
        cron=timing.expression if isinstance(timing, Cron) else None,
        every_s=timing.every_s if isinstance(timing, Every) else None,
        adaptive=_adaptive_view(timing),
        interval_s=schedule.interval_s,
        timezone=spec.timezone,
        jitter_s=spec.jitter_s,
        misfire=spec.misfire,
        overlap=spec.overlap,
        next_fire_at=schedule.next_at,
        due_at=schedule.due_at,
        last_fire_at=schedule.last_fire_at,
        paused_at=pause.at if pause else None,
        paused_by=pause.by if pause else None,
        paused_reason=pause.reason if pause else None,
        version=schedule.version,
        created_at=schedule.created_at,
        updated_at=schedule.updated_at,
        links={"self": path, "runs": f"{path}/runs", "preview": f"{path}/preview"},
    )


def _answer(schedule: Schedule, response: Response) -> ScheduleView:
    response.headers["ETag"] = f'"{schedule.version}"'
    return schedule_view(schedule)


def _fire_view(fire: Fire) -> FireView:
    return FireView.model_validate(fire)


def _adaptive_view(timing: Timing) -> AdaptiveView | None:
    if not isinstance(timing, Adaptive):
        return None
    return AdaptiveView(min_s=timing.min_s, max_s=timing.max_s)


def _job(services: Services, principal: Principal, request: JobRequest) -> NewJob:
    checked = checker(services.kinds, services.egress, principal).check(request)
    if isinstance(checked, list):
        raise invalid_fields([{**e, "pointer": f"/job{e['pointer']}"} for e in checked])
    return checked


def _timing(request: ScheduleRequest | SchedulePatch) -> Timing | None:
    given: list[Timing] = []
    if request.cron is not None:
        given.append(Cron(request.cron))
    if request.every_s is not None:
        given.append(Every(request.every_s))
    if request.adaptive is not None:
        given.append(Adaptive(request.adaptive.min_s, request.adaptive.max_s))
    if len(given) > 1:
        raise _one_timing()
    return given[0] if given else None


def _no_timing() -> Timing:
    raise _one_timing()


def _one_timing() -> Problem:
    return invalid("", "give exactly one of cron, every_s and adaptive")


def _patched(
    services: Services, principal: Principal, old: ScheduleSpec, patch: SchedulePatch
) -> ScheduleSpec:
    given: dict[str, Any] = patch.model_dump(  # fields of a ScheduleSpec, whatever their types
        include={"name", "timezone", "jitter_s"}, exclude_none=True
    )
    if patch.misfire is not None:
        given["misfire"] = Misfire(patch.misfire)
    if patch.overlap is not None:
        given["overlap"] = Overlap(patch.overlap)
    if patch.job is not None:
        given["job"] = _job(services, principal, patch.job)
    if (timing := _timing(patch)) is not None:
        given["timing"] = timing
    return replace(old, **given)
