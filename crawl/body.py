"""The body of a response, decompressed by us: a bomb stops at its limit, not after."""

import zlib
from collections.abc import Iterator

import httpx

from crawl.errors import PageError
from crawl.pages import Reason

ACCEPT_ENCODING = "gzip, deflate"
_STEP_BYTES = 256 * 1024
_GZIP = zlib.MAX_WBITS | 16


async def read_body(response: httpx.Response, limit_bytes: int, *, cut: bool = False) -> bytes:
    """Read a streamed response; more than the limit raises PageError, or is cut off if `cut`.

    httpx's own decoders would unpack a whole network read at once, a thousand times its size, and
    again for each encoding that is named.
    """
    unpack = _unpacker(response.headers.get("content-encoding", ""))
    found = bytearray()
    async for packed in response.aiter_raw():
        for part in unpack(packed):
            found += part
            if len(found) > limit_bytes:
                if cut:
                    return bytes(found[:limit_bytes])
                raise PageError(Reason.TOO_LARGE, f"the body has more than {limit_bytes} bytes")
    return bytes(found)


def _unpacker(encoding: str) -> "_Plain | _Inflate":
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Inflate(_GZIP)
        case "deflate":
            return _Inflate(zlib.MAX_WBITS)
        case _:
            detail = f"the body is encoded as {encoding[:100]!r}, which we did not ask for"
            raise PageError(Reason.ENCODING, detail)


class _Plain:
    """No encoding."""

    def __call__(self, packed: bytes) -> Iterator[bytes]:
        yield packed


class _Inflate:
    """gzip and deflate, in bounded steps. What follows the first member is ignored."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._inflater = zlib.decompressobj(bits)
        self._started = False

    def __call__(self, packed: bytes) -> Iterator[bytes]:
        while packed and not self._inflater.eof:
            yield self._step(packed)
            packed = self._inflater.unconsumed_tail

    def _step(self, packed: bytes) -> bytes:
        try:
            part = self._inflater.decompress(packed, _STEP_BYTES)
        except zlib.error as error:
            if self._started or self._bits != zlib.MAX_WBITS:
                raise PageError(Reason.ENCODING, f"the body is damaged: {error}") from None
            # Many servers mean raw deflate by "deflate", without zlib's frame.
            self._started, self._inflater = True, zlib.decompressobj(-zlib.MAX_WBITS)
            return self._step(packed)
        self._started = True
        return part
