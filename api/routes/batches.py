"""/v1/batches: many jobs at once, as JSON or NDJSON, appended to in parts, counted, read,
cancelled, retried.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Request, Response, status

from api import waiting
from api.auth import Principal, Reader, Submitter
from api.batch_requests import BatchRequest, PartRequest, read_batch, read_part
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
from api.errors import ProblemType
from api.idempotency import Work, answer_once, fingerprint, respond
from api.openapi import json_or_ndjson, problems
from api.paging import bad_cursor
from api.quotas import Counted, admit_one
from api.routing import router as make_router
from api.sights import Place
from api.views import BatchView, Page, View, batch_view
from jobs import batches
from jobs.errors import BatchNotOpen, JobsRefused
from jobs.idempotency import StoredAnswer
from jobs.model import Batch
from jobs.results import Ready
from jobs.spool import Spool
from jobs.states import BatchState
from runtime.postgres import Connection

router = make_router("batches")

# So long a repeat waits for the first, however many jobs that brings; see docs/decisions/0025.
SAME_KEY_WAIT_S = 20.0

BatchId = Annotated[UUID, Path(description="The batch's id.")]
PartKey = Annotated[
    str | None,
    Query(max_length=255, pattern=r"^[\x21-\x7e]+$", description="The part's name."),
]


class PartView(View):
    """What a part added; `replayed` when the part was added before and nothing was done now."""

    batch_id: UUID
    jobs: int
    replayed: bool


class KnownPartView(View):
    """A part that an open batch has: appending it again adds nothing."""

    part: str
    jobs: int
    created_at: datetime


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
    with services.spools.spool() as spool:
        sent = await read_batch(request, services, principal, spool)
        ready: dict[str, Sequence[UUID]] = {}

        async def work(connection: Connection) -> StoredAnswer:
            # Here, since a repeat is answered as the first time, however full the queue is by now.
            services.backlog.check_all(spool.per_pool, services.owned)
            await _admit(services, connection, principal, spool, sent.batch.state)
            batch_id = await batches.create(connection, principal.tenant_id, sent.batch)
            ready.update(await _enqueue(services, connection, principal, batch_id, spool))
            return _created(await batches.get(connection, principal.tenant_id, batch_id))

        request_hash = fingerprint(request, digest=sent.digest)
        turn = services.spools.turn(spool, services.kinds)
        try:
            response = await _once(services, principal, idempotency_key, request_hash, work, turn)
        except JobsRefused as error:
            raise sent.refusal(error) from None
    services.announcer.announce(ready)
    return response


async def _admit(
    services: Services,
    connection: Connection,
    principal: Principal,
    spool: Spool,
    state: BatchState = BatchState.RUNNING,
) -> None:
    """Refuse what exceeds the tenant's quotas."""
    if state is BatchState.OPEN:
        await admit_one(connection, principal.tenant_id, principal.quotas, Counted.OPEN_BATCHES)
    await services.quotas.admit_jobs(principal.tenant_id, principal.quotas, spool.per_pool)


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
        ProblemType.IN_FLIGHT,
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
    part: PartKey = None,
    idempotency_key: IdempotencyKey = None,
) -> PartView:
    """Append a part to an open batch, once: repeating it adds nothing.

    A part is known by `part`, else by `Idempotency-Key`, else by its content.
    """
    key = part or idempotency_key
    await _assert_takes_part(services, principal, batch_id, key)
    with services.spools.spool() as spool:
        sent = await read_part(request, services, principal, spool)
        key = key or f"sha256:{sent.digest.hex()}"
        try:
            async with AsyncExitStack() as waits:
                await waits.enter_async_context(services.turns.of((batch_id, key), SAME_KEY_WAIT_S))
                if not await _is_known(services, batch_id, key):
                    await waits.enter_async_context(services.spools.turn(spool, services.kinds))
                appended = await _append(
                    services, principal, batch_id, spool, part_key=key, request_hash=sent.digest
                )
        except JobsRefused as error:
            raise sent.refusal(error) from None
    services.announcer.announce(appended.ready)
    return PartView(batch_id=batch_id, jobs=appended.jobs, replayed=appended.replayed)


async def _assert_takes_part(
    services: Services, principal: Principal, batch_id: UUID, key: str | None
) -> None:
    """Refuse before a large body is read what its end would be refused for anyway."""
    async with services.connection() as connection:
        state = await batches.state_of(connection, principal.tenant_id, batch_id)
        if state is BatchState.OPEN or key is None:
            return
        if not await batches.has_part(connection, batch_id, key):
            raise BatchNotOpen(batch_id, state)


async def _is_known(services: Services, batch_id: UUID, part_key: str) -> bool:
    async with services.connection() as connection:
        return await batches.has_part(connection, batch_id, part_key)


async def _append(
    services: Services,
    principal: Principal,
    batch_id: UUID,
    spool: Spool,
    *,
    part_key: str,
    request_hash: bytes,
) -> batches.Appended:
    async with services.transaction() as connection:
        if not await batches.has_part(connection, batch_id, part_key):
            # Not for a repeat, which adds nothing.
            services.backlog.check_all(spool.per_pool, services.owned)
            await _admit(services, connection, principal, spool)
        return await batches.append(
            connection,
            principal.tenant_id,
            batch_id,
            spool,
            part_key=part_key,
            request_hash=request_hash,
            kinds=services.kinds,
            ageing_s=services.settings.ageing_s,
        )


@router.get(
    "/batches/{batch_id}/parts",
    response_model=Page[KnownPartView],
    responses=problems(ProblemType.NOT_FOUND),
)
async def list_parts(
    services: WithServices,
    principal: Reader,
    batch_id: BatchId,
    cursor: Cursor = None,
    limit: Limit = LIST_DEFAULT,
) -> Page[KnownPartView]:
    """The parts that were added, by name: what need not be sent again after a broken connection."""
    async with services.connection() as connection:
        try:
            page = await batches.parts(
                connection, principal.tenant_id, batch_id, cursor=cursor, limit=limit
            )
        except ValueError:
            raise bad_cursor() from None
    return Page[KnownPartView](
        data=[
            KnownPartView(part=part.key, jobs=part.jobs, created_at=part.created_at)
            for part in page.parts
        ],
        next_cursor=page.next_cursor,
    )


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


@router.get(
    "/batches/{batch_id}",
    response_model=BatchView,
    responses={
        304: waiting.UNCHANGED,
        **problems(ProblemType.NOT_FOUND, ProblemType.TOO_MANY_WATCHERS),
    },
)
async def get_batch(
    request: Request,
    services: WithServices,
    principal: Reader,
    batch_id: BatchId,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
) -> Response:
    """A batch and its counts, from one snapshot. With `Prefer: wait=N`, once it differs from
    `If-None-Match`, or from what it is now.
    """
    wait_s = wait_seconds(prefer, services.settings.wait_max_s)
    known, place = etags(if_none_match), Place(principal.tenant_id, batch_id)
    if wait_s is None:
        seen = await waiting.read_batch(services, place)
    else:
        seen = await waiting.until_batch_changed(
            request, services, place, known=known, wait_s=wait_s
        )
    return waiting.answer(seen, known, wait_s)


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
    services: Services,
    principal: Principal,
    key: str | None,
    request_hash: bytes,
    work: Work,
    turn: AbstractAsyncContextManager[None],
) -> Response:
    if key is not None:
        return await answer_once(
            services,
            principal,
            key,
            request_hash,
            work=work,
            wait_s=SAME_KEY_WAIT_S,
            turn=turn,
        )
    async with turn, services.transaction() as connection:
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
