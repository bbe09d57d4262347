"""Server-sent events on the wire: framing, heartbeats, and the end of readers that are gone or too
slow.
"""

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import anyio
from anyio import CancelScope
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import Problem
from api.places import Places
from api.translations import POSTGRES_AWAY
from jobs.model import TenantId
from runtime import metrics
from runtime.logs import logger

HEARTBEAT_S = 15.0
# Who takes nothing for so long is dropped. Until then the server holds back one buffer of the
# connection and one chunk for it, never more: everything else waits in the ledger.
STALLED_S = 30.0
# Readers that lose their process together come back one by one, within so many milliseconds.
RETRY_MS = (1000, 3000)
BEAT = b": still here\n\n"
# The ASGI extension by which api/serve.py lets us cut a connection that takes nothing.
CUT = "xnai.cut"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = logger("events")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of the stream that hold so many whole events, shared by all who read them.

    `beat` is what the heartbeats say from here on; empty data only changes that.
    """

    data: bytes
    events: int = 1
    beat: bytes | None = None


def encode_event(type_: str, id_: str | None, data: bytes) -> Chunk:
    """One event. `data` is JSON, which has no line breaks of its own, so one line is enough; `id_`
    is what the reader sends back as Last-Event-ID, None for what is told only once.
    """
    place = b"" if id_ is None else b"id: %b\n" % id_.encode()
    return Chunk(b"event: %b\n%bdata: %b\n\n" % (type_.encode(), place, data))


def beat_at(id_: str) -> bytes:
    """A heartbeat that moves the reader on: events of others need not be looked through again."""
    return b": still here\nid: %b\n\n" % id_.encode()


@dataclass(frozen=True, slots=True)
class StreamReader:
    """Who reads a stream of which kind."""

    tenant_id: TenantId
    places: Places
    stream: str
    max_s: float


class EventStream(Response):
    """Sends what the source yields until either side ends.

    A reader that takes nothing for STALLED_S is cut off, and every stream ends after `max_s`:
    readers come back with Last-Event-ID, perhaps to another process.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[Chunk], reader: StreamReader) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._source = source
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one reader, or answer that there is no place for one more."""
        try:
            with self._reader.places.taken(self._reader.tenant_id, self._reader.stream):
                await self._serve(_Wire(send, _cut_of(scope)), receive)
        except Problem as problem:
            await problem.response()(scope, receive, send)

    async def _serve(self, wire: "_Wire", receive: Receive) -> None:
        await wire.begin(self.status_code, self.raw_headers)
        async with anyio.create_task_group() as group:
            group.start_soon(_until_gone, receive, group.cancel_scope)
            group.start_soon(wire.watch)
            with anyio.move_on_after(self._reader.max_s):
                await self._pump(wire)
            await wire.end()
            group.cancel_scope.cancel()

    async def _pump(self, wire: "_Wire") -> None:
        sent = metrics.EVENTS_SENT.labels(stream=self._reader.stream)
        try:
            await wire.send(b"retry: %d\n\n" % random.randint(*RETRY_MS))  # noqa: S311 - no secret
            async with aclosing(self._source) as source:
                async for chunk in source:
                    wire.beat = chunk.beat or wire.beat
                    if chunk.data:
                        await wire.send(chunk.data)
                        sent.inc(chunk.events)
                    # It may be large, and the next one may be long in coming.
                    del chunk
        except POSTGRES_AWAY as error:
            log.info("stream_ended", error=str(error) or type(error).__name__)


class _Wire:
    """One connection: knows since when nothing was sent, or nothing was taken."""

    def __init__(self, send: Send, cut: Callable[[], None] | None) -> None:
        self._send = send
        self._cut = cut
        self._quiet_since = anyio.current_time()
        self._is_sending = False
        self.beat = BEAT

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes) -> None:
        """Send whole events; returns once the reader has room for more."""
        self._is_sending = True
        self._quiet_since = anyio.current_time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False

    async def end(self) -> None:
        """Tell the reader that this is all."""
        self._is_sending = True
        self._quiet_since = anyio.current_time()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def watch(self) -> None:
        """Send heartbeats, and cut off a reader that has stopped taking."""
        while True:
            limit_s = STALLED_S if self._is_sending else HEARTBEAT_S
            left_s = self._quiet_since + limit_s - anyio.current_time()
            if left_s > 0:
                await anyio.sleep(left_s)
            elif self._is_sending or not await self._beat_in_time():
                self._drop()
                return

    async def _beat_in_time(self) -> bool:
        with anyio.move_on_after(STALLED_S) as limit:
            await self.send(self.beat)
        return not limit.cancelled_caught

    def _drop(self) -> None:
        metrics.SLOW_READERS.inc()
        if self._cut is None:
            raise TimeoutError("the reader takes nothing")
        # The server then tells that the reader has gone, which ends everything here.
        self._cut()


def _cut_of(scope: Scope) -> Callable[[], None] | None:
    extension = (scope.get("extensions") or {}).get(CUT, {})
    return cast("Callable[[], None] | None", extension.get("now"))


async def _until_gone(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
