"""/v1/jobs: submit, read, list, change, cancel and retry jobs."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Request, Response, status
from pydantic import Field

from api import waiting
from api.auth import Operator, Principal, Reader, Submitter
from api.deps import (
    LIST_DEFAULT,
    Cursor,
    IdempotencyKey,
    IfNoneMatch,
    Limit,
    Prefer,
    Services,
    WithServices,
    etags,
    wait_seconds,
)
from api.errors import Problem, ProblemType, field_error, invalid, invalid_fields
from api.idempotency import answer_once, fingerprint, respond
from api.job_requests import JobRequest, Moment, RequestModel, Tags, checker
from api.openapi import problems
from api.paging import bad_cursor
from api.routing import router as make_router
from api.sights import Place
from api.submissions import Submitted, enqueue
from api.views import AttemptView, JobView, Page, attempt_view, job_view
from jobs import ledger, lookup
from jobs.enqueue import ready_of
from jobs.errors import JobNotFound, JobsRefused
from jobs.idempotency import StoredAnswer
from jobs.lookup import JobFilter
from jobs.model import Job, NewJob
from jobs.states import JobState
from runtime.postgres import Connection

router = make_router("jobs")

JobId = Annotated[UUID, Path(description="The job's id.")]


class JobPatch(RequestModel):
    """What may change of a live job; fields left out stay."""

    priority: Annotated[int, Field(ge=0, le=9)] | None = None
    run_at: Moment | None = None
    tags: Tags | None = None


@router.post(
    "/jobs",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses={
        200: {
            "model": JobView,
            "description": "It has settled in time, or `unique` matched a job.",
        },
        **problems(ProblemType.IN_FLIGHT, ProblemType.TOO_LARGE, ProblemType.QUEUE_FULL),
    },
)
async def submit_job(
    request: Request,
    services: WithServices,
    principal: Submitter,
    job: JobRequest,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Accept a job: once this answers, the job is on disk."""
    new = checker(services.kinds, services.egress, principal).check(job)
    if isinstance(new, list):
        raise invalid_fields(new)
    try:
        if idempotency_key is not None:
            body = await request.body()
            return await _submit_once(
                services, principal, idempotency_key, new, fingerprint(request, body)
            )
        await _check_room(services, principal, new)
        submitted = await services.submissions.submit(principal.tenant_id, new)
    except JobsRefused as error:
        fields = [field_error(r.pointer, r.detail) for r in error.refusals]
        raise invalid_fields(fields) from None
    wait_s = wait_seconds(prefer, services.settings.wait_max_s)
    return await settled_response(request, services, submitted, wait_s)


async def _check_room(services: Services, principal: Principal, new: NewJob) -> None:
    pool = services.kinds[new.kind].pool
    services.backlog.check(pool, 1, services.owned)
    await services.quotas.admit_jobs(principal.tenant_id, principal.quotas, {pool: 1})


async def _submit_once(
    services: Services, principal: Principal, key: str, new: NewJob, request_hash: bytes
) -> Response:
    ready: dict[str, Sequence[UUID]] = {}

    async def work(connection: Connection) -> StoredAnswer:
        # Here, since a repeat is answered as the first time, however full the queue is by now.
        await _check_room(services, principal, new)
        (submitted,) = await enqueue(
            connection,
            principal.tenant_id,
            [new],
            kinds=services.kinds,
            ageing_s=services.settings.ageing_s,
        )
        ready.update(ready_of([submitted.accepted]))
        return accepted_response(submitted)

    response = await answer_once(services, principal, key, request_hash, work=work)
    services.announcer.announce(ready)
    return response


async def settled_response(
    request: Request, services: Services, submitted: Submitted, wait_s: float | None
) -> Response:
    """200 with the settled job; 202 with what it is when it was not waited for, or when the time is
    over.
    """
    place = Place(submitted.job.tenant_id, submitted.job.id)
    # It is accepted: that must be told, also when nobody else may wait here.
    if not wait_s or not services.places.is_free(place.tenant_id):
        return respond(accepted_response(submitted))
    seen = await waiting.until_settled(request, services, place, wait_s)
    view = job_view(seen.job, seen.progress, deduplicated=submitted.accepted.deduplicated or None)
    is_done = seen.is_final or submitted.accepted.deduplicated
    code = status.HTTP_200_OK if is_done else status.HTTP_202_ACCEPTED
    headers = {"Location": view.links["self"], "Preference-Applied": f"wait={wait_s:g}"}
    return Response(view.model_dump_json(), code, headers, media_type="application/json")


def accepted_response(submitted: Submitted) -> StoredAnswer:
    """202 with the new job, or 200 with the one that `unique` matched."""
    is_known = submitted.accepted.deduplicated
    view = job_view(submitted.job, deduplicated=is_known or None)
    code = status.HTTP_200_OK if is_known else status.HTTP_202_ACCEPTED
    return StoredAnswer(code, {"Location": view.links["self"]}, view.model_dump_json().encode())


@router.get("/jobs", response_model=Page[JobView])
async def list_jobs(
    services: WithServices,
    principal: Reader,
    kind: Annotated[str | None, Query(max_length=63)] = None,
    state: JobState | None = None,
    batch_id: UUID | None = None,
    tag: Annotated[str | None, Query(max_length=128)] = None,
    error_type: Annotated[
        str | None, Query(max_length=255, description="`error.type` of failed jobs.")
    ] = None,
    *,
    discarded: Annotated[
        bool, Query(description="The discarded ones of the failed jobs instead of the others.")
    ] = False,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Response:
    """The tenant's jobs, newest first. Those in the state failed are the dead letters. A page looks
    at a bounded number of jobs: it may be short, or empty, before the last one.
    """
    for name, value in (("error_type", error_type), ("discarded", discarded or None)):
        if value is not None and state is not JobState.FAILED:
            raise invalid(f"/{name}", "goes with state=failed", place="query")
    wanted = JobFilter(kind, state, batch_id, tag, error_type, discarded)
    async with services.connection() as connection:
        try:
            page = await lookup.list_jobs(
                connection, principal.tenant_id, wanted, cursor=cursor, limit=limit
            )
        except ValueError:
            raise bad_cursor() from None
    view = Page[JobView].model_construct(
        data=[job_view(job) for job in page.jobs], next_cursor=page.next_cursor
    )
    return Response(view.model_dump_json(), media_type="application/json")


@router.get(
    "/jobs/{job_id}",
    response_model=JobView,
    responses={
        304: waiting.UNCHANGED,
        **problems(ProblemType.NOT_FOUND, ProblemType.TOO_MANY_WATCHERS),
    },
)
async def get_job(
    request: Request,
    services: WithServices,
    principal: Reader,
    job_id: JobId,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
) -> Response:
    """A job. With `Prefer: wait=N`, once it differs from `If-None-Match`, or from what it is
    now.
    """
    wait_s = wait_seconds(prefer, services.settings.wait_max_s)
    known, place = etags(if_none_match), Place(principal.tenant_id, job_id)
    if wait_s is None:
        seen = await waiting.read_job(services, place)
    else:
        seen = await waiting.until_job_changed(request, services, place, known=known, wait_s=wait_s)
    return waiting.answer(seen, known, wait_s)


@router.patch("/jobs/{job_id}", responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT))
async def change_job(
    services: WithServices, principal: Submitter, job_id: JobId, patch: JobPatch
) -> JobView:
    """Change a live job's priority, tags, or the time of a waiting one."""
    async with services.transaction() as connection:
        ready = await ledger.change(
            connection,
            principal.tenant_id,
            job_id,
            priority=patch.priority,
            run_at=patch.run_at,
            tags=patch.tags,
            ageing_s=services.settings.ageing_s,
        )
        job = await lookup.get(connection, principal.tenant_id, job_id)
    services.announcer.announce(ready)
    services.announcer.changed(principal.tenant_id, [job_id])
    return job_view(job)


@router.post("/jobs/{job_id}/cancel", responses=problems(ProblemType.NOT_FOUND))
async def cancel_job(services: WithServices, principal: Submitter, job_id: JobId) -> JobView:
    """Cancel a job and what it created. Idempotent; a finished job stays as it is."""
    async with services.transaction() as connection:
        result = await ledger.cancel(connection, principal.tenant_id, [job_id])
        if job_id in result.missing:
            raise JobNotFound(job_id)
    services.announcer.announce(result.ready)
    touched = {job_id, *result.cancelled, *(i for ids in result.requested.values() for i in ids)}
    services.announcer.changed(principal.tenant_id, touched, result.batches)
    await services.finish_batches(principal.tenant_id, result.batches)
    return job_view(await _read(services, principal, job_id))


@router.post(
    "/jobs/{job_id}/retry", responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT)
)
async def retry_job(services: WithServices, principal: Submitter, job_id: JobId) -> JobView:
    """Queue a finished job again with a new budget, its history kept. Idempotent; a live job stays
    as it is.
    """
    async with services.transaction() as connection:
        result = await ledger.retry(connection, principal.tenant_id, [job_id])
        if job_id in result.missing:
            raise JobNotFound(job_id)
        if job_id in result.key_taken:
            raise Problem(ProblemType.CONFLICT, "another live job holds this job's unique key")
    services.announcer.announce(result.ready)
    services.announcer.changed(principal.tenant_id, [job_id])
    return job_view(await _read(services, principal, job_id))


@router.post(
    "/jobs/{job_id}/discard", responses=problems(ProblemType.NOT_FOUND, ProblemType.CONFLICT)
)
async def discard_job(services: WithServices, principal: Operator, job_id: JobId) -> JobView:
    """Take a failed job off the list of dead letters; it stays until retention. Idempotent, and
    undone by a retry.
    """
    async with services.transaction() as connection:
        result = await ledger.discard(connection, principal.tenant_id, [job_id], by=principal.name)
        if job_id in result.missing:
            raise JobNotFound(job_id)
        if (state := result.not_failed.get(job_id)) is not None:
            detail = f"job {job_id} is {state}: only failed jobs are discarded"
            raise Problem(ProblemType.CONFLICT, detail)
    return job_view(await _read(services, principal, job_id))


@router.get("/jobs/{job_id}/attempts", responses=problems(ProblemType.NOT_FOUND))
async def list_attempts(
    services: WithServices, principal: Reader, job_id: JobId
) -> Page[AttemptView]:
    """Every attempt of a job, oldest first, the running one included."""
    async with services.connection() as connection:
        found = await lookup.attempts(connection, principal.tenant_id, job_id)
    return Page[AttemptView](data=[attempt_view(attempt) for attempt in found])


async def _read(services: Services, principal: Principal, job_id: UUID) -> Job:
    async with services.connection() as connection:
        return await lookup.get(connection, principal.tenant_id, job_id)
