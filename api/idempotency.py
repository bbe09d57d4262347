"""`Idempotency-Key` over HTTP: the request's fingerprint, the first answer kept, and the same
answer again.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import anyio
from fastapi import Request, Response

from api.auth import Principal
from api.deps import Services
from jobs import idempotency
from jobs.errors import IdempotencyInFlight
from jobs.idempotency import StoredAnswer
from runtime.postgres import Connection

REPLAYED = "Idempotency-Replayed"
# Another API process may answer the first request: this is how often its end is looked for.
_LOOK_AGAIN_S = 0.5

type Work = Callable[[Connection], Awaitable[StoredAnswer]]


def fingerprint(request: Request, body: bytes | None = None, digest: bytes = b"") -> bytes:
    """A hash of what makes two requests the same: method, path, content type and body."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    hasher = hashlib.sha256(f"{request.method} {request.url.path} {media_type}\n".encode())
    hasher.update(body or b"")
    hasher.update(digest)
    return hasher.digest()


async def answer_once(
    services: Services,
    principal: Principal,
    key: str,
    request_hash: bytes,
    *,
    work: Work,
    wait_s: float = idempotency.WAIT_S,
    turn: AbstractAsyncContextManager[None] | None = None,
) -> Response:
    """Do the work and keep its answer in one transaction, or replay the answer that was kept.

    While the first request with the key is still being answered, wait up to `wait_s` for it; then
    IdempotencyInFlight. Raises what the work raises: then nothing is kept, and the key is free
    again. `turn` is entered by whoever has the key, before a connection is taken.
    """
    deadline = anyio.current_time() + wait_s
    async with AsyncExitStack() as waits:
        await waits.enter_async_context(services.turns.of((principal.tenant_id, key), wait_s))
        if turn is not None:
            # A repeat needs no turn.
            async with services.connection() as connection:
                kept = await idempotency.kept(connection, principal.tenant_id, key, request_hash)
            if kept is not None:
                return _replay(kept)
            await waits.enter_async_context(turn)
        while True:
            left_s = deadline - anyio.current_time()
            try:
                return await _answer_once(
                    services, principal, key, request_hash, work=work, left_s=left_s
                )
            except IdempotencyInFlight:
                if left_s <= idempotency.WAIT_S:
                    raise
                # No connection is kept meanwhile: others need it.
                await anyio.sleep(_LOOK_AGAIN_S)


async def _answer_once(
    services: Services,
    principal: Principal,
    key: str,
    request_hash: bytes,
    *,
    work: Work,
    left_s: float,
) -> Response:
    wait_s = max(0.05, min(left_s, idempotency.WAIT_S))
    async with services.transaction() as connection:
        kept = await idempotency.begin(
            connection, principal.tenant_id, key, request_hash, wait_s=wait_s
        )
        if kept is None:
            fresh = await work(connection)
            await idempotency.finish(connection, principal.tenant_id, key, fresh)
            return respond(fresh)
    return _replay(kept)


def _replay(kept: StoredAnswer) -> Response:
    response = respond(kept)
    response.headers[REPLAYED] = "true"
    return response


def respond(answer: StoredAnswer) -> Response:
    """The stored answer as a response."""
    return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")
