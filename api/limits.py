"""How much a request may send, and reading no more than that. Bounds in bytes, counts and
seconds.
"""

from collections.abc import AsyncIterator, Sequence
from itertools import batched

from starlette.requests import Request

from api.errors import Problem, ProblemType

KIB = 1024
MIB = 1024 * KIB

JSON_BODY_BYTES = 1 * MIB
BATCH_JSON_BYTES = 16 * MIB
DOCUMENT_BYTES = 32 * MIB
NDJSON_BODY_BYTES = 512 * MIB
NDJSON_LINE_BYTES = 320 * KIB
# Checking this many takes some milliseconds; then it is the other requests' turn.
LINES_AT_ONCE = 200
BATCH_JSON_JOBS = 1_000
BATCH_NDJSON_JOBS = 100_000
# More bad lines than this help nobody; the first ones are named, the rest are counted.
BAD_LINES_NAMED = 100


def too_large(limit: int, what: str = "the body") -> Problem:
    """The 413 that names the bound."""
    return Problem(ProblemType.TOO_LARGE, f"{what} may have at most {limit} bytes")


async def read_bounded(request: Request, limit: int) -> bytes:
    """The whole body, or Problem 413 as soon as it is known to be longer than `limit` bytes."""
    check_announced(request, limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def check_announced(request: Request, limit: int) -> None:
    """Refuse by Content-Length before a byte is read."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large(limit)


async def line_blocks(request: Request) -> AsyncIterator[tuple[int, Sequence[bytes]]]:
    """The body's lines as they arrive, some at once, each time with the first one's 1-based number.

    Holds at most one line and one chunk; a line or a body beyond its bound is a Problem 413.
    """
    check_announced(request, NDJSON_BODY_BYTES)
    rest, number, received = b"", 1, 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > NDJSON_BODY_BYTES:
            raise too_large(NDJSON_BODY_BYTES)
        *whole, rest = (rest + chunk).split(b"\n")
        for block in batched(whole, LINES_AT_ONCE):
            yield number, _bounded(block, number)
            number += len(block)
        _bounded((rest,), number)
    if rest:
        yield number, (rest,)


def _bounded(block: Sequence[bytes], first: int) -> Sequence[bytes]:
    for number, line in enumerate(block, first):
        if len(line) > NDJSON_LINE_BYTES:
            raise too_large(NDJSON_LINE_BYTES, f"line {number}")
    return block


def too_many_jobs(limit: int) -> Problem:
    """The 413 of a batch with more jobs than one request may bring."""
    return Problem(
        ProblemType.TOO_LARGE,
        f"one request takes at most {limit} jobs: open a batch and append parts to it",
    )
