"""Server-sent events on the wire: framing, heartbeats, and the end of readers that are gone or too
slow.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import anyio
import orjson
from anyio import CancelScope
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.translations import POSTGRES_AWAY
from runtime import metrics
from runtime.logs import logger

HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 30.0
RETRY_MS = 2000
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

log = logger("events")


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; `id` is what the reader sends back as Last-Event-ID."""

    type: str
    id: str
    data: bytes

    def encode(self) -> bytes:
        """The event as bytes; JSON has no line breaks of its own, so one data line is enough."""
        return b"event: %b\nid: %b\ndata: %b\n\n" % (
            self.type.encode(),
            self.id.encode(),
            self.data,
        )


def event(type_: str, id_: str, data: object) -> ServerEvent:
    """An event with JSON data."""
    return ServerEvent(type_, id_, orjson.dumps(data))


class EventStream(Response):
    """Sends what the source yields (None: only to give the heartbeat a chance) until either side
    ends.

    A reader that takes nothing for SEND_TIMEOUT_S is dropped, and every stream ends after `max_s`:
    readers come back with Last-Event-ID, perhaps to another process.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncIterator[ServerEvent | None], *, name: str, max_s: float
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._source = source
        self._name = name
        self._max_s = max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader."""
        del scope
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async with anyio.create_task_group() as group:
            group.start_soon(_until_gone, receive, group.cancel_scope)
            with anyio.move_on_after(self._max_s):
                await self._pump(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()

    async def _pump(self, send: Send) -> None:
        try:
            await _send(send, b"retry: %d\n\n" % RETRY_MS)
            async with aclosing(self._source) as source:  # type: ignore[type-var] # a generator
                last = anyio.current_time()
                async for item in source:
                    if item is not None:
                        await _send(send, item.encode())
                        metrics.EVENTS_SENT.labels(stream=self._name).inc()
                    elif anyio.current_time() - last >= HEARTBEAT_S:
                        await _send(send, b": still here\n\n")
                    else:
                        continue
                    last = anyio.current_time()
        except POSTGRES_AWAY as error:
            # TimeoutError of a slow reader is among them: both end the stream, and the reader
            # resumes.
            log.info("stream_ended", error=str(error) or type(error).__name__)


async def _send(send: Send, chunk: bytes) -> None:
    with anyio.fail_after(SEND_TIMEOUT_S):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _until_gone(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
