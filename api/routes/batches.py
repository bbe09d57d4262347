"""/v1/batches: many jobs at once, as JSON or NDJSON, appended to in parts, counted, read,
cancelled, retried.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import Path, Query, Request, Response, status
from fastapi.responses import StreamingResponse
from pydantic import Field

from api import ndjson
from api.auth import Principal, Reader, Submitter
from api.deps import LIST_DEFAULT, Cursor, IdempotencyKey, Limit, Services, WithServices
from api.errors import FieldError, ProblemType, invalid, invalid_fields
from api.idempotency import Work, answer_once, fingerprint, respond
from api.job_requests import JobChecker, JobRequest, RequestModel, Tags, checker
from api.limits import BATCH_JSON_BYTES, BATCH_JSON_JOBS
from api.openapi import json_or_ndjson, problems
from api.paging import bad_cursor
from api.routing import media_type_of, read_model
from api.routing import router as make_router
from api.views import BatchView, Page, View, batch_view
from jobs import batches
from jobs.batches import NewBatch, ResultLine
from jobs.errors import JobsRefused
from jobs.idempotency import StoredAnswer
from jobs.kinds import Url
from jobs.model import Batch
from jobs.results import Ready
from jobs.spool import Spool
from jobs.states import BatchState
from runtime.egress import EgressDenied
from runtime.postgres import Connection

router = make_router("batches")

BatchId = Annotated[UUID, Path(description="The batch's id.")]
RESULTS_PAGE = 1000
_MEDIA = "application/json or application/x-ndjson"


class BatchRequest(RequestModel):
    """A batch: its jobs, or `"state": "open"` to append them later."""

    jobs: Annotated[list[JobRequest], Field(max_length=BATCH_JSON_JOBS, default_factory=list)]
    state: Literal["open", "running"] = "running"
    callback_url: Url | None = None
    tags: Annotated[Tags, Field(default_factory=list)]


class PartRequest(RequestModel):
    """A part of an open batch."""

    jobs: Annotated[list[JobRequest], Field(min_length=1, max_length=BATCH_JSON_JOBS)]


class PartView(View):
    """What a part added; `replayed` when the part was added before and nothing was done now."""

    batch_id: UUID
    jobs: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a request says of its jobs beside the spool: where each stood, and a hash of it all."""

    digest: bytes
    lines: Sequence[int] | None = None
    batch: NewBatch = field(default_factory=NewBatch)

    def refusal(self, error: JobsRefused) -> Exception:
        """The ledger's refusals in the request's own terms."""
        return error if self.lines is None else ndjson.refused(error, self.lines)


@router.post(
    "/batches",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=BatchView,
    responses={
        201: {"model": BatchView, "description": "An open batch, waiting for its parts."},
        **problems(
            ProblemType.IN_FLIGHT,
            ProblemType.TOO_LARGE,
            ProblemType.QUEUE_FULL,
            ProblemType.MEDIA_TYPE,
        ),
    },
    openapi_extra=json_or_ndjson(BatchRequest),
)
async def create_batch(
    request: Request,
    services: WithServices,
    principal: Submitter,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept all jobs or none. NDJSON takes one job a line, up to 100,000."""
    with Spool() as spool:
        sent = await _read_batch(request, services, principal, spool)
        ready: dict[str, Sequence[UUID]] = {}

        async def work(connection: Connection) -> StoredAnswer:
            # Here, since a repeat is answered as the first time, however full the queue is by now.
            services.backlog.check_all(spool.per_pool, services.owned)
            batch_id = await batches.create(connection, principal.tenant_id, sent.batch)
            ready.update(await _enqueue(services, connection, principal, batch_id, spool))
            return _created(await batches.get(connection, principal.tenant_id, batch_id))

        request_hash = fingerprint(request, digest=sent.digest)
        try:
            response = await _once(services, principal, idempotency_key, request_hash, work)
        except JobsRefused as error:
            raise sent.refusal(error) from None
    services.announcer.announce(ready)
    return response


def _created(batch: Batch) -> StoredAnswer:
    is_open = batch.state is BatchState.OPEN
    return StoredAnswer(
        status.HTTP_201_CREATED if is_open else status.HTTP_202_ACCEPTED,
        {"Location": f"/v1/batches/{batch.id}"},
        batch_view(batch).model_dump_json().encode(),
    )


@router.post(
    "/batches/{batch_id}/jobs",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(
        ProblemType.NOT_FOUND,
        ProblemType.CONFLICT,
        ProblemType.TOO_LARGE,
        ProblemType.QUEUE_FULL,
        ProblemType.MEDIA_TYPE,
    ),
    openapi_extra=json_or_ndjson(PartRequest),
)
async def append_jobs(
    request: Request,
    services: WithServices,
    principal: Submitter,
    batch_id: BatchId,
    part: Annotated[
        str | None,
        Query(max_length=255, pattern=r"^[\x21-\x7e]+$", description="The part's name."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> PartView:
    """Append a part to an open batch, once: repeating it adds nothing.

    A part is known by `part`, else by `Idempotency-Key`, else by its content.
    """
    with Spool() as spool:
        sent = await _read_part(request, services, principal, spool)
        services.backlog.check_all(spool.per_pool, services.owned)
        try:
            async with services.transaction() as connection:
                appended = await batches.append(
                    connection,
                    principal.tenant_id,
                    batch_id,
                    spool,
                    part_key=part or idempotency_key or f"sha256:{sent.digest.hex()}",
                    request_hash=sent.digest,
                    kinds=services.kinds,
                    ageing_s=services.settings.ageing_s,
                )
        except JobsRefused as error:
            raise sent.refusal(error) from None
    services.announcer.announce(appended.ready)
    return PartView(batch_id=batch_id, jobs=appended.jobs, replayed=appended.replayed)


@router.post("/batches/{batch_id}/seal", responses=problems(ProblemType.NOT_FOUND))
async def seal_batch(services: WithServices, principal: Submitter, batch_id: BatchId) -> BatchView:
    """Let an open batch finish. Idempotent."""
    async with services.transaction() as connection:
        await batches.seal(connection, principal.tenant_id, batch_id)
    return await _after(services, principal, batch_id, (batch_id,))


@router.get("/batches", response_model=Page[BatchView])
async def list_batches(
    services: WithServices,
    principal: Reader,
    state: BatchState | None = None,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[BatchView]:
    """The tenant's batches, newest first."""
    async with services.connection() as connection:
        try:
            page = await batches.list_batches(
                connection, principal.tenant_id, state=state, cursor=cursor, limit=limit
            )
        except ValueError:
            raise bad_cursor() from None
    return Page[BatchView](data=[batch_view(b) for b in page.batches], next_cursor=page.next_cursor)


@router.get("/batches/{batch_id}", responses=problems(ProblemType.NOT_FOUND))
async def get_batch(services: WithServices, principal: Reader, batch_id: BatchId) -> BatchView:
    """A batch and its counts, from one snapshot."""
    async with services.connection() as connection:
        return batch_view(await batches.get(connection, principal.tenant_id, batch_id))


@router.get(
    "/batches/{batch_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One line a finished job.",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        },
        **problems(ProblemType.NOT_FOUND),
    },
)
async def read_results(
    services: WithServices, principal: Reader, batch_id: BatchId, cursor: Cursor = None
) -> Response:
    """The results so far as NDJSON, in the order they became visible; go on after a line's
    `cursor`.
    """
    async with services.connection() as connection:
        await batches.get(connection, principal.tenant_id, batch_id)
        try:
            first = await batches.results(
                connection, principal.tenant_id, batch_id, cursor=cursor, limit=RESULTS_PAGE
            )
        except ValueError:
            raise bad_cursor() from None
    lines = _result_lines(services, principal, batch_id, first)
    return StreamingResponse(lines, media_type="application/x-ndjson")


@router.post("/batches/{batch_id}/cancel", responses=problems(ProblemType.NOT_FOUND))
async def cancel_batch(
    services: WithServices, principal: Submitter, batch_id: BatchId
) -> BatchView:
    """Cancel what is live in the batch; finished work is kept. Idempotent."""
    async with services.transaction() as connection:
        result = await batches.cancel(connection, principal.tenant_id, batch_id)
    services.announcer.announce(result.ready)
    services.announcer.changed(principal.tenant_id, result.cancelled, (batch_id,))
    return await _after(services, principal, batch_id, (*result.batches, batch_id))


@router.post("/batches/{batch_id}/retry", responses=problems(ProblemType.NOT_FOUND))
async def retry_batch(services: WithServices, principal: Submitter, batch_id: BatchId) -> BatchView:
    """Retry the failed and cancelled jobs of the batch; succeeded ones are kept. Idempotent."""
    async with services.transaction() as connection:
        result = await batches.retry(connection, principal.tenant_id, batch_id)
    services.announcer.announce(result.ready)
    services.announcer.changed(principal.tenant_id, result.retried, (batch_id,))
    return await _after(services, principal, batch_id, ())


async def _after(
    services: Services, principal: Principal, batch_id: UUID, maybe_finished: tuple[UUID, ...]
) -> BatchView:
    await services.finish_batches(principal.tenant_id, maybe_finished)
    async with services.connection() as connection:
        return batch_view(await batches.get(connection, principal.tenant_id, batch_id))


async def _once(
    services: Services, principal: Principal, key: str | None, request_hash: bytes, work: Work
) -> Response:
    if key is not None:
        return await answer_once(services, principal, key, request_hash, work=work)
    async with services.transaction() as connection:
        return respond(await work(connection))


async def _enqueue(
    services: Services, connection: Connection, principal: Principal, batch_id: UUID, spool: Spool
) -> Ready:
    if not len(spool):
        return {}
    return await batches.fill(
        connection,
        principal.tenant_id,
        spool,
        kinds=services.kinds,
        batch_id=batch_id,
        ageing_s=services.settings.ageing_s,
    )


async def _read_batch(
    request: Request, services: Services, principal: Principal, spool: Spool
) -> _Sent:
    judge = checker(services.kinds, services.egress, principal)
    if media_type_of(request) in ndjson.MEDIA_TYPES:
        return await _read_lines(request, judge, spool)
    body, sent = await read_model(request, BatchRequest, BATCH_JSON_BYTES, _MEDIA)
    if sent.state == "running" and not sent.jobs:
        raise invalid("/jobs", "a batch holds at least one job, or has the state open")
    if sent.state == "open" and sent.jobs:
        raise invalid("/jobs", "an open batch begins empty: append its jobs in parts")
    if sent.callback_url is not None:
        try:
            services.egress.check_literal(sent.callback_url)
        except EgressDenied as error:
            raise invalid("/callback_url", str(error)) from None
    _check_jobs(sent.jobs, judge, spool)
    batch = NewBatch(BatchState(sent.state), tuple(sent.tags), sent.callback_url)
    return _Sent(hashlib.sha256(body).digest(), batch=batch)


async def _read_part(
    request: Request, services: Services, principal: Principal, spool: Spool
) -> _Sent:
    judge = checker(services.kinds, services.egress, principal)
    if media_type_of(request) in ndjson.MEDIA_TYPES:
        return await _read_lines(request, judge, spool)
    body, sent = await read_model(request, PartRequest, BATCH_JSON_BYTES, _MEDIA)
    _check_jobs(sent.jobs, judge, spool)
    return _Sent(hashlib.sha256(body).digest())


async def _read_lines(request: Request, judge: JobChecker, spool: Spool) -> _Sent:
    found = await ndjson.read_jobs(request, judge, spool)
    return _Sent(found.digest, found.numbers)


def _check_jobs(requests: Sequence[JobRequest], judge: JobChecker, spool: Spool) -> None:
    bad: list[FieldError] = []
    for position, request in enumerate(requests):
        errors = judge.add_to(spool, request)
        bad.extend({**e, "pointer": f"/jobs/{position}{e['pointer']}"} for e in errors)
    if bad:
        raise invalid_fields(bad)


async def _result_lines(
    services: Services, principal: Principal, batch_id: UUID, page: list[ResultLine]
) -> AsyncIterator[bytes]:
    """Page by page; no connection is held while a slow reader takes its time."""
    while page:
        yield b"".join(_result_line(line) for line in page)
        if len(page) < RESULTS_PAGE:
            return
        async with services.connection() as connection:
            page = await batches.results(
                connection,
                principal.tenant_id,
                batch_id,
                cursor=page[-1].cursor,
                limit=RESULTS_PAGE,
            )


def _result_line(line: ResultLine) -> bytes:
    job = line.job
    return orjson.dumps(
        {
            "cursor": line.cursor,
            "id": str(job.id),
            "custom_id": job.custom_id,
            "kind": job.kind,
            "state": job.state,
            "attempt": job.attempt,
            "finished_at": job.finished_at,
            "result": job.result,
            "error": job.error,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
