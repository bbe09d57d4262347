"""A body as lines, as they arrive: unpacked, bounded in every direction, never held whole."""

import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import batched

from starlette.requests import Request

from api.errors import Problem, ProblemType, field_error
from api.limits import (
    KIB,
    NDJSON_BODY_BYTES,
    NDJSON_LINE_BYTES,
    NDJSON_LINES,
    check_announced,
    chunks_of,
    too_large,
)

# Checking this many takes some milliseconds; then it is the other requests' turn.
LINES_AT_ONCE = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UNPACKED_AT_ONCE_BYTES = 256 * KIB
# zlib's manual, inflateInit2: 15 bits of window, and 16 for the head and tail of gzip.
_GZIP = 15 + 16


async def line_blocks(request: Request) -> AsyncIterator[tuple[int, Sequence[bytes]]]:
    """The body's lines, some at once, each time with the first one's 1-based number.

    Holds at most one line and one chunk; a line or a body beyond its bound is a Problem 413. Lines
    end with LF or CRLF, the last one may end with neither; a byte order mark is passed over.
    """
    check_announced(request, NDJSON_BODY_BYTES)
    rest, number, received = bytearray(), 1, 0
    async for chunk in _unpacked(request):
        received += len(chunk)
        if received > NDJSON_BODY_BYTES:
            raise too_large(NDJSON_BODY_BYTES)
        rest += chunk
        if b"\n" in chunk:
            *whole, tail = bytes(rest).split(b"\n")
            for block in batched(whole, LINES_AT_ONCE):
                for place, line in enumerate(block, number):
                    _check(len(line), place)
                yield number, _without_mark(block, number)
                number += len(block)
            rest = bytearray(tail)
        _check(len(rest), number)
    if rest:
        yield number, _without_mark((bytes(rest),), number)


def _check(size_bytes: int, number: int) -> None:
    if size_bytes > NDJSON_LINE_BYTES:
        raise at_line(number, too_large(NDJSON_LINE_BYTES, "a line"))
    if number > NDJSON_LINES:
        detail = f"a body may have at most {NDJSON_LINES} lines, the empty ones among them"
        raise Problem(ProblemType.TOO_LARGE, detail)


def _without_mark(block: Sequence[bytes], number: int) -> Sequence[bytes]:
    """Windows' editors begin a file with a byte order mark."""
    return (block[0].removeprefix(_BYTE_ORDER_MARK), *block[1:]) if number == 1 else block


def at_line(number: int, problem: Problem) -> Problem:
    """The same problem, with the line that caused it."""
    errors = problem.errors or (field_error("", problem.detail),)
    return Problem(
        problem.type,
        f"line {number}: {problem.detail}",
        errors=[{**error, "line": number} for error in errors],
        headers=problem.headers,
    )


def check_packing(request: Request, *known: str) -> None:
    """Refuse a body that is packed in a way that is not `known` here (RFC 9110, 8.4)."""
    packing = _packing(request)
    if packing and packing not in known:
        wanted = ", ".join(known) or "identity"
        detail = f"Content-Encoding {packing} is not understood here, {wanted} is"
        headers = {"Accept-Encoding": wanted}
        raise Problem(ProblemType.MEDIA_TYPE, detail, headers=headers)


def _packing(request: Request) -> str:
    packing = request.headers.get("content-encoding", "").strip().lower()
    return "" if packing == "identity" else packing.removeprefix("x-")


async def _unpacked(request: Request) -> AsyncIterator[bytes]:
    check_packing(request, "gzip")
    gunzip = _Gunzip() if _packing(request) else None
    async for chunk in chunks_of(request):
        if gunzip is None:
            yield chunk
            continue
        for piece in gunzip.pieces(chunk):
            yield piece
    if gunzip is not None:
        gunzip.end()


class _Gunzip:
    """Unpacks gzip piece by piece: a small chunk may hold very much. Members may follow each other
    (RFC 1952, 2.2).
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._is_within = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What the chunk unpacks to, some at once."""
        while chunk:
            self._is_within = True
            try:
                piece = self._member.decompress(chunk, _UNPACKED_AT_ONCE_BYTES)
            except zlib.error as error:
                raise Problem(ProblemType.MALFORMED, f"the body is no gzip: {error}") from None
            if piece:
                yield piece
            chunk = self._member.unconsumed_tail
            if self._member.eof:
                chunk = self._member.unused_data
                self._member = zlib.decompressobj(_GZIP)
                self._is_within = False

    def end(self) -> None:
        """Nothing follows; raises Problem when something should."""
        if self._is_within:
            raise Problem(ProblemType.MALFORMED, "the body ends in the middle of its gzip stream")
