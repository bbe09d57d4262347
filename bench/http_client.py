"""A client that costs little, since it shares the machine with what it measures: raw sockets, one
process.

`python -m bench.http_client` reads its order from the environment and prints what it measured.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anyio
import uvloop

from bench.measure import percentile
from bench.peers.stamps import Stamps

VARIABLE = "BENCH_HTTP_ORDER"
READ_AHEAD_MAX = 2**20
PROBE_GAP_S = 0.02


@dataclass(frozen=True, slots=True)
class HttpOrder:
    """What the client is to do, as JSON in its environment."""

    role: str
    host: str
    port: int
    key: str
    count: int = 0
    connections: int = 1
    seconds: float = 0.0
    stamps: str = ""
    first: int = 0

    def encode(self) -> str:
        """As the value of the variable."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Session:
    """One keep-alive connection."""

    order: HttpOrder
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    waited_ms: list[float] = field(default_factory=list)

    @classmethod
    async def open(cls, order: HttpOrder) -> "Session":
        """Connect."""
        reader, writer = await asyncio.open_connection(order.host, order.port, limit=READ_AHEAD_MAX)
        return cls(order, reader, writer)

    async def send(self, request: bytes, *, expected: int) -> bytes:
        """One exchange; its body. Any other status ends the measurement."""
        began = time.perf_counter()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(line[15:] for line in lines if line.startswith(b"content-length:"))
        body = await self.reader.readexactly(int(length))
        self.waited_ms.append((time.perf_counter() - began) * 1000)
        if int(lines[0].split(b" ")[1]) != expected:
            raise SystemExit(f"{lines[0].decode()}: {body[:500].decode()}")
        return body

    def request(self, method: str, path: str, body: bytes = b"", kind: str = "json") -> bytes:
        """The bytes of a request."""
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.order.host}\r\n"
            f"Authorization: Bearer {self.order.key}\r\nContent-Type: application/{kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


async def hammer(order: HttpOrder) -> dict[str, float]:
    """Many connections, each with one POST /v1/jobs after the other."""
    sessions = [await Session.open(order) for _ in range(order.connections)]
    began = time.perf_counter()

    async def post(session: Session) -> None:
        request = session.request("POST", "/v1/jobs", b'{"kind":"probe","payload":{}}')
        while time.perf_counter() - began < order.seconds:
            await session.send(request, expected=202)

    async with anyio.create_task_group() as group:
        for session in sessions:
            group.start_soon(post, session)
    took_s = time.perf_counter() - began
    waited_ms = [ms for session in sessions for ms in session.waited_ms]
    return {
        "requests_per_s": len(waited_ms) / took_s,
        "p50_ms": percentile(waited_ms, 50),
        "p99_ms": percentile(waited_ms, 99),
    }


async def upload(order: HttpOrder) -> dict[str, float]:
    """One NDJSON batch, while another connection reads a job again and again."""
    session, other = await Session.open(order), await Session.open(order)
    job = json.loads(
        await session.send(
            session.request("POST", "/v1/jobs", b'{"kind":"probe","payload":{}}'), expected=202
        )
    )
    lines = b'{"kind":"probe","payload":{}}\n' * order.count
    request = session.request("POST", "/v1/batches", lines, "x-ndjson")
    is_done = asyncio.Event()

    async def read() -> None:
        probe = other.request("GET", f"/v1/jobs/{job['id']}")
        while not is_done.is_set():
            await other.send(probe, expected=200)
            await asyncio.sleep(PROBE_GAP_S)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await session.send(request, expected=202)
        answered_ns = time.monotonic_ns()
        is_done.set()
    return {
        "seconds": session.waited_ms[-1] / 1000,
        "answered_ns": answered_ns,
        "get_p99_ms": percentile(other.waited_ms, 99),
    }


async def idle(order: HttpOrder) -> dict[str, float]:
    """Single jobs at uneven moments: from the answer 202 to the handler's first line."""
    session = await Session.open(order)
    stamps = Stamps(Path(order.stamps))
    for number in range(order.first, order.first + order.count):
        body = json.dumps({"kind": "stamp", "payload": {"number": number}}).encode()
        numbers = range(number, number + 1)
        stamps.offered(numbers)
        await session.send(session.request("POST", "/v1/jobs", body), expected=202)
        stamps.accepted(numbers)
        await asyncio.sleep(0.02 + 0.04 * (number * 0.618 % 1))
    return {}


def main() -> None:
    """Carry out the order."""
    order = HttpOrder(**json.loads(os.environ.pop(VARIABLE)))
    roles: dict[str, Callable[[HttpOrder], Awaitable[dict[str, float]]]] = {
        "hammer": hammer,
        "upload": upload,
        "idle": idle,
    }

    async def run() -> dict[str, float]:
        return await roles[order.role](order)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(json.dumps(runner.run(run())) + "\n")


if __name__ == "__main__":
    main()
