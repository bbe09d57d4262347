"""A real receiver on loopback, well-behaved or not: what deliveries are tested against."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import orjson
from anyio.streams.buffered import BufferedByteReceiveStream

HEAD_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def type(self) -> str:
        return str(orjson.loads(self.body)["type"])


type Answer = bytes | Callable[[anyio.abc.SocketStream], Awaitable[None]]


def reply(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """An answer; underscores in header names stand for hyphens."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def hang(_: anyio.abc.SocketStream) -> None:
    """Take the request and never answer."""
    await anyio.sleep_forever()


@dataclass(slots=True)
class Receiver:
    """Answers with what is next in `answers`, the last one again and again; to paths that end in
    one of `paths`, always with that.
    """

    url: str
    answers: list[Answer]
    paths: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    open: int = 0
    open_most: int = 0
    _seen: anyio.Event = field(default_factory=anyio.Event)

    async def handle(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            buffered = BufferedByteReceiveStream(stream)
            head = (await buffered.receive_until(b"\r\n\r\n", HEAD_MAX)).decode("latin-1")
            first, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
            }
            body = await buffered.receive_exactly(int(headers["content-length"]))
            path = first.split()[1]
            self.requests.append(Request(path, headers, body))
            self._seen.set()
            answer = self._answer(path)
            self.open += 1
            self.open_most = max(self.open, self.open_most)
            try:
                await (stream.send(answer) if isinstance(answer, bytes) else answer(stream))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the sender has heard enough
            finally:
                self.open -= 1

    def _answer(self, path: str) -> Answer:
        special = [answer for end, answer in self.paths.items() if path.endswith(end)]
        if special:
            return special[0]
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def until(self, count: int) -> None:
        """Return when so many requests have come."""
        with anyio.fail_after(20):
            while len(self.requests) < count:
                self._seen = anyio.Event()
                await self._seen.wait()


@asynccontextmanager
async def receiver(
    *answers: Answer, host: str = "127.0.0.1", paths: dict[str, Answer] | None = None
) -> AsyncIterator[Receiver]:
    """Listen on a free port."""
    async with (
        await anyio.create_tcp_listener(local_host=host, local_port=0) as listener,
        anyio.create_task_group() as group,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
        found = Receiver(f"http://{host}:{port}/hook", list(answers) or [reply()], paths or {})
        group.start_soon(listener.serve, found.handle)
        yield found
        group.cancel_scope.cancel()
