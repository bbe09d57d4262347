"""`Idempotency-Key` over HTTP: the request's fingerprint, the first answer kept, and the same
answer again.
"""

import hashlib
from collections.abc import Awaitable, Callable

from fastapi import Request, Response

from api.auth import Principal
from api.deps import Services
from jobs import idempotency
from jobs.idempotency import StoredAnswer
from runtime.postgres import Connection

REPLAYED = "Idempotency-Replayed"

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
) -> Response:
    """Do the work and keep its answer in one transaction, or replay the answer that was kept.

    Raises what the work raises: then nothing is kept, and the key is free again.
    """
    async with services.transaction() as connection:
        kept = await idempotency.begin(connection, principal.tenant_id, key, request_hash)
        if kept is None:
            fresh = await work(connection)
            await idempotency.finish(connection, principal.tenant_id, key, fresh)
            return respond(fresh)
    response = respond(kept)
    response.headers[REPLAYED] = "true"
    return response


def respond(answer: StoredAnswer) -> Response:
    """The stored answer as a response."""
    return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")
