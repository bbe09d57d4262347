"""How much a request may send, and reading no more than that. Bounds in bytes, counts and
seconds.
"""

from collections.abc import AsyncIterator

import anyio
from starlette.requests import Request

from api.errors import Problem, ProblemType

KIB = 1024
MIB = 1024 * KIB

JSON_BODY_BYTES = 1 * MIB
BATCH_JSON_BYTES = 16 * MIB
DOCUMENT_BYTES = 32 * MIB
NDJSON_BODY_BYTES = 512 * MIB
NDJSON_LINE_BYTES = 320 * KIB
# A body may come slowly, but not stand still for longer.
BODY_PAUSE_S = 60.0
BATCH_JSON_JOBS = 1_000
BATCH_NDJSON_JOBS = 100_000
# With those that are empty: they cost time, though they hold no job.
NDJSON_LINES = 1_000_000
# What is wrong is told in full of so many, of the others by their numbers.
BAD_LINES_NAMED = 100


def too_large(limit: int, what: str = "the body") -> Problem:
    """The 413 that names the bound."""
    return Problem(ProblemType.TOO_LARGE, f"{what} may have at most {limit} bytes")


async def read_bounded(request: Request, limit: int) -> bytes:
    """The whole body, or Problem 413 as soon as it is known to be longer than `limit` bytes."""
    check_announced(request, limit)
    body = bytearray()
    async for chunk in chunks_of(request):
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def check_announced(request: Request, limit: int) -> None:
    """Refuse by Content-Length before a byte is read."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large(limit)


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives; Problem 408 when nothing more does for BODY_PAUSE_S."""
    stream = request.stream()
    while True:
        with anyio.move_on_after(BODY_PAUSE_S) as scope:
            chunk = await anext(stream, None)
        if scope.cancelled_caught:
            raise Problem(
                ProblemType.TOO_SLOW,
                f"nothing of the body came for {BODY_PAUSE_S:g} s, and nothing was accepted",
                headers={"Connection": "close"},
            )
        if chunk is None:
            return
        yield chunk


def too_many_jobs(limit: int) -> Problem:
    """The 413 of a batch with more jobs than one request may bring."""
    return Problem(
        ProblemType.TOO_LARGE,
        f"one request takes at most {limit} jobs: open a batch and append parts to it",
    )
