"""Schedules as clients ask for them, and the specifications that they become."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from api.auth import Principal
from api.deps import Services
from api.errors import Problem, invalid, invalid_fields
from api.job_requests import JobRequest, RequestModel, checker
from jobs.kinds import Text
from jobs.model import NewJob
from schedules.model import Adaptive, Cron, Every, Misfire, Overlap, ScheduleSpec, Timing

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


def spec_of(services: Services, principal: Principal, request: ScheduleRequest) -> ScheduleSpec:
    """What a request specifies. Raises Problem."""
    timing = _timing(request)
    if timing is None:
        raise _one_timing()
    return ScheduleSpec(
        name=request.name,
        job=_job(services, principal, request.job),
        timing=timing,
        timezone=request.timezone,
        jitter_s=request.jitter_s,
        misfire=Misfire(request.misfire),
        overlap=Overlap(request.overlap),
    )


def patched(
    services: Services, principal: Principal, old: ScheduleSpec, patch: SchedulePatch
) -> ScheduleSpec:
    """The specification with what the patch changes. Raises Problem."""
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


def _one_timing() -> Problem:
    return invalid("", "give exactly one of cron, every_s and adaptive")
