"""A TCP proxy whose line can be cut, slowed and healed: a bad network between two processes.

A cut line is a partition, not an end: connections stay, bytes wait, and flow again when it heals.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus

CHUNK_BYTES = 65_536
_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


@dataclass(slots=True)
class Line:
    """What happens to bytes on their way, in both directions."""

    delay_s: float = 0.0
    _healed: anyio.Event | None = field(default=None)

    @property
    def is_cut(self) -> bool:
        """Whether bytes wait now."""
        return self._healed is not None

    def cut(self) -> None:
        """Let nothing through until `heal`."""
        if self._healed is None:
            self._healed = anyio.Event()

    def heal(self) -> None:
        """Let everything through at once: what waited comes first."""
        self.delay_s = 0.0
        if self._healed is not None:
            self._healed.set()
            self._healed = None

    async def pass_through(self) -> None:
        """Return when the next bytes may go on."""
        if self.delay_s:
            await anyio.sleep(self.delay_s)
        while self._healed is not None:
            await self._healed.wait()


class Proxy:
    """Listens on a loopback port of its own and leads to `target`, as long as `run` runs."""

    def __init__(self, target: Callable[[], tuple[str, int]]) -> None:
        self.line = Line()
        self.port = 0
        self._target = target

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `port` is known once it is started."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = int(listener.extra(SocketAttribute.local_port))  # noqa: S610 - not Django
        async with listener:
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, client: SocketStream) -> None:
        async with client:
            await self.line.pass_through()
            with suppress(*_GONE):
                host, port = self._target()
                async with await anyio.connect_tcp(host, port) as server:
                    await self._join(client, server)

    async def _join(self, client: SocketStream, server: SocketStream) -> None:
        async with anyio.create_task_group() as group:
            for source, sink in ((client, server), (server, client)):
                group.start_soon(self._pump, source, sink, group.cancel_scope)

    async def _pump(
        self, source: SocketStream, sink: SocketStream, both: anyio.CancelScope
    ) -> None:
        """Carry bytes one way; the end of one way is the end of both."""
        with suppress(*_GONE):
            while True:
                data = await source.receive(CHUNK_BYTES)
                await self.line.pass_through()
                await sink.send(data)
        both.cancel()
