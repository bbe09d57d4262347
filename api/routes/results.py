"""/v1/batches/{id}/results: what the batch's jobs came to, line by line, while it runs and
after.
"""

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

import anyio
import orjson
from fastapi import Header, Response, status
from fastapi.responses import StreamingResponse

from api.auth import Principal, Reader
from api.deps import Cursor, IfNoneMatch, Prefer, Services, WithServices, wait_seconds
from api.errors import ProblemType
from api.line_stream import MEDIA_TYPE, LineStream, takes_gzip
from api.openapi import problems
from api.paging import bad_cursor
from api.routes.batches import BatchId
from api.routing import router as make_router
from api.translations import POSTGRES_AWAY
from jobs import batches
from jobs.batches import ResultLine
from jobs.model import Batch
from jobs.states import BatchState

router = make_router("batches")

PAGE_LINES = 500
# A stream goes on where it was when Postgres is back within so many tries, a second apart.
TRIES = 10
TRY_AGAIN_S = 1.0

AcceptEncoding = Annotated[
    str | None, Header(max_length=1024, description="`gzip`: the lines come compressed.")
]


@router.get(
    "/batches/{batch_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "One line a finished job.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            "headers": {
                "Batch-State": {
                    "schema": {"type": "string", "enum": [state.value for state in BatchState]},
                    "description": "`finished`: these lines are all that there are.",
                }
            },
        },
        304: {"description": "The batch is finished, and its lines are those that you have."},
        **problems(ProblemType.NOT_FOUND),
    },
)
async def read_results(
    services: WithServices,
    principal: Reader,
    batch_id: BatchId,
    cursor: Cursor = None,
    accept_encoding: AcceptEncoding = None,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
) -> Response:
    """The results so far as NDJSON, in the order they became visible; go on after a line's
    `cursor`. `Prefer: wait=N` waits for the first line that there is not yet.
    """
    wait_s = wait_seconds(prefer, services.settings.wait_max_s) or 0.0
    batch, first = await _first_page(services, principal, batch_id, cursor, wait_s)
    headers = {"Batch-State": batch.state.value}
    if batch.state is BatchState.FINISHED:
        headers["ETag"] = tag = f'W/"{batch.run}.{cursor or ""}"'
        if if_none_match is not None and tag in if_none_match:
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    source = _pages(services, principal, batch_id, cursor, first)
    return LineStream(source, gzipped=takes_gzip(accept_encoding), headers=headers)


async def _first_page(
    services: Services, principal: Principal, batch_id: UUID, cursor: str | None, wait_s: float
) -> tuple[Batch, list[ResultLine]]:
    """The batch and then its lines, so that those of a finished batch are complete."""
    deadline = anyio.current_time() + wait_s
    with services.hub.watch(principal.tenant_id, batch_id) as watcher:
        while True:
            async with services.connection() as connection:
                batch = await batches.get(connection, principal.tenant_id, batch_id)
                try:
                    page = await batches.results(
                        connection, principal.tenant_id, batch_id, cursor=cursor, limit=PAGE_LINES
                    )
                except ValueError:
                    raise bad_cursor() from None
            left_s = deadline - anyio.current_time()
            is_over = batch.state is BatchState.FINISHED or services.hub.is_closing
            if page or is_over or left_s <= 0:
                return batch, page
            await watcher.wait(left_s)


async def _pages(
    services: Services,
    principal: Principal,
    batch_id: UUID,
    cursor: str | None,
    page: list[ResultLine],
) -> AsyncIterator[bytes]:
    """Page by page; no connection is held while a slow reader takes its time."""
    while page:
        yield _one_line_each(b"".join(map(_line, page)))
        cursor = page[-1].cursor
        page = await _next_page(services, principal, batch_id, cursor)


async def _next_page(
    services: Services, principal: Principal, batch_id: UUID, cursor: str
) -> list[ResultLine]:
    """The lines after the cursor, over a short outage too."""
    tries = TRIES
    while True:
        try:
            async with services.connection() as connection:
                return await batches.results(
                    connection, principal.tenant_id, batch_id, cursor=cursor, limit=PAGE_LINES
                )
        except POSTGRES_AWAY:
            tries -= 1
            if not tries:
                raise
        await anyio.sleep(TRY_AGAIN_S)


def _line(line: ResultLine) -> bytes:
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
            "result": _as_is(job.result),
            "error": _as_is(job.error),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


# JSON may hold these as they are, and many a reader takes them for the end of a line.
_LINE_ENDS = (
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
    ("\x85".encode(), b"\\u0085"),
)


def _one_line_each(page: bytes) -> bytes:
    for raw, escaped in _LINE_ENDS:
        page = page.replace(raw, escaped)
    return page


def _as_is(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)
