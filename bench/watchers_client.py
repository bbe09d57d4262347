"""A thousand watchers that cost little, since they share the machine with what they watch: raw
sockets, one process, and of each event only when it came.

`python -m bench.watchers_client` reads its order from standard input, says `ready` once all are
connected, and prints what they saw when the input ends.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from datetime import datetime

import anyio
import uvloop

CONNECT_AT_ONCE = 50
READ_BYTES = 2**18
_COUNTS = re.compile(
    rb'"counts":\{"total":\d+,"scheduled":\d+,"queued":\d+,"running":\d+,'
    rb'"succeeded":(\d+),"failed":(\d+),"cancelled":(\d+)\}'
)
_TIMESTAMP = re.compile(rb'"timestamp":"([^"]+)"')
_FINISHED = re.compile(rb'"finished_at":"([^"]+)"')
_ETAG = re.compile(rb"\r\netag: ([^\r]+)\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


@dataclass(frozen=True, slots=True)
class Order:
    """Whom to watch, as a line of JSON: a stream a batch and a job, so many of the tenant, and long
    polls that each go from job to job.
    """

    host: str
    port: int
    key: str
    batches: list[str]
    jobs: list[str]
    tenants: int
    polls: list[list[str]]

    def encode(self) -> str:
        """As that line."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Seen:
    """Snapshots as (when, jobs that had ended) for each batch stream, and delays in ms."""

    snapshots: list[list[tuple[float, int]]] = field(default_factory=list)
    job_ms: list[float] = field(default_factory=list)
    tenant_ms: list[float] = field(default_factory=list)
    poll_ms: list[float] = field(default_factory=list)


class Watchers:
    """All of them."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._connecting = anyio.CapacityLimiter(CONNECT_AT_ONCE)
        self._missing = len(order.batches) + len(order.jobs) + order.tenants + len(order.polls)
        self.ready = anyio.Event()
        self.seen = Seen([[] for _ in order.batches])

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as group:
            for place, batch in enumerate(self._order.batches):
                group.start_soon(self._batch, place, batch)
            for job in self._order.jobs:
                group.start_soon(self._job, job)
            for _ in range(self._order.tenants):
                group.start_soon(self._tenant)
            for jobs in self._order.polls:
                group.start_soon(self._poll, jobs)

    async def _batch(self, place: int, batch: str) -> None:
        reader, _ = await self._open(f"/v1/batches/{batch}/events")
        snapshots = self.seen.snapshots[place]
        async for text, now in _events(reader):
            for counts in _COUNTS.finditer(text):
                snapshots.append((now, sum(map(int, counts.groups()))))

    async def _job(self, job: str) -> None:
        reader, _ = await self._open(f"/v1/jobs/{job}/events")
        began = time.time()
        async for text, now in _events(reader):
            if b"event: job.succeeded" in text and (found := _FINISHED.search(text)):
                if (finished := _seconds(found[1])) > began:
                    self.seen.job_ms.append(1000 * (now - finished))
                return

    async def _tenant(self) -> None:
        reader, _ = await self._open("/v1/events")
        async for text, now in _events(reader):
            delays = (1000 * (now - _seconds(at)) for at in _TIMESTAMP.findall(text))
            self.seen.tenant_ms.extend(delays)

    async def _poll(self, jobs: list[str]) -> None:
        reader, writer = await self._connect()
        self._connected()
        etag = b'"none"'
        for job in jobs:
            began, answered, finished = time.time(), 0.0, None
            while finished is None:
                self._ask(writer, f"/v1/jobs/{job}", b"Prefer: wait=30\r\nIf-None-Match: " + etag)
                head = await reader.readuntil(b"\r\n\r\n")
                answered = time.time()
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                found = _ETAG.search(head)
                etag = found[1] if found else etag
                finished = _FINISHED.search(body)
            if (ended := _seconds(finished[1])) > began:
                self.seen.poll_ms.append(1000 * (answered - ended))

    async def _open(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._connect()
        self._ask(writer, path, b"Accept: text/event-stream")
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(head.decode())
        self._connected()
        return reader, writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._connecting:
            address = self._order.host, self._order.port
            return await asyncio.open_connection(*address, limit=READ_BYTES)

    def _connected(self) -> None:
        self._missing -= 1
        if not self._missing:
            self.ready.set()

    def _ask(self, writer: asyncio.StreamWriter, path: str, header: bytes) -> None:
        writer.write(
            b"GET %b HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %b\r\n%b\r\n\r\n"
            % (path.encode(), self._order.key.encode(), header)
        )


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, float]]:
    """Whole events as they come, a few at a time, with the framing of chunks between them."""
    rest = b""
    while data := await reader.read(READ_BYTES):
        now = time.time()
        whole, end, rest = (rest + data).rpartition(b"\n\n")
        if end:
            yield whole, now


def _seconds(text: bytes) -> float:
    return datetime.fromisoformat(text.decode()).timestamp()


async def _main() -> None:
    lines = anyio.wrap_file(sys.stdin)
    watchers = Watchers(Order(**json.loads(await lines.readline())))
    async with anyio.create_task_group() as group:
        group.start_soon(watchers.run)
        await watchers.ready.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await lines.read()
        group.cancel_scope.cancel()
    sys.stdout.write(json.dumps(asdict(watchers.seen)) + "\n")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
