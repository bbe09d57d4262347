"""Lines on the wire: as fast as their reader takes them, compressed if it likes, and never held
whole.
"""

import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import override

import anyio
from anyio import CancelScope
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.translations import POSTGRES_AWAY
from runtime.logs import logger

MEDIA_TYPE = "application/x-ndjson"
# A reader that has not taken a slice by then is gone.
SEND_TIMEOUT_S = 60.0
SLICE_BYTES = 64 * 1024
# Half of the best that gzip does, for a quarter of the time.
_LEVEL = 4
_GZIP = 15 + 16

log = logger("lines")


class LineStream(Response):
    """Sends what the source yields. An answer that cannot be brought to its end is cut, so that
    nobody takes it for a whole one.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self, source: AsyncIterator[bytes], *, gzipped: bool, headers: Mapping[str, str]
    ) -> None:
        packing = {"Content-Encoding": "gzip"} if gzipped else {}
        super().__init__(headers={**headers, "Vary": "Accept-Encoding", **packing})
        del self.headers["content-length"]
        self._source = source
        self._gzipped = gzipped

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader."""
        del scope
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        async with anyio.create_task_group() as group:
            group.start_soon(_until_gone, receive, group.cancel_scope)
            try:
                await self._pump(send)
            except POSTGRES_AWAY as error:
                # TimeoutError of a slow reader is among them.
                log.info("lines_cut", error=str(error) or type(error).__name__)
            group.cancel_scope.cancel()

    async def _pump(self, send: Send) -> None:
        pack = zlib.compressobj(_LEVEL, wbits=_GZIP) if self._gzipped else None
        async with aclosing(self._source) as source:  # type: ignore[type-var] # a generator
            async for page in source:
                if pack is None:
                    await _send(send, page)
                else:
                    # What is complete goes out now, not when the next page fills a block.
                    await _send(send, pack.compress(page) + pack.flush(zlib.Z_SYNC_FLUSH))
        if pack is not None:
            await _send(send, pack.flush())
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, page: bytes) -> None:
    """In slices, so that a slow reader is told from one that is gone."""
    for start in range(0, len(page), SLICE_BYTES):
        part = page[start : start + SLICE_BYTES]
        with anyio.fail_after(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": part, "more_body": True})


async def _until_gone(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def takes_gzip(accept_encoding: str | None) -> bool:
    """Whether the reader likes gzip (RFC 9110, 12.5.3): named, or by `*`, and not with `q=0`."""
    weights: dict[str, float] = {}
    for entry in (accept_encoding or "").lower().split(","):
        name, _, parameter = entry.partition(";")
        weights[name.strip()] = _weight(parameter)
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


def _weight(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    try:
        return float(value) if name == "q" else 1.0
    except ValueError:
        return 0.0
