"""A real web site on loopback, well-behaved or not: what the crawler is tested against."""

import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from crawl.extractor import Extractor
from crawl.fetch import crawl_client
from crawl.limits import CrawlLimits
from crawl.pages import CrawlReport, CrawlRequest, Page, Validators
from crawl.site import crawl_site
from runtime.egress import EgressPolicy

LOCAL = EgressPolicy(("127.0.0.0/8",))
AGENT = "xnai/0.1 (+https://example.org/bot)"
# Short, since the faults here are meant, and generous enough for a machine that is busy.
FAST = CrawlLimits(
    connect_s=2.0,
    first_byte_s=0.5,
    stall_s=0.5,
    page_s=2.0,
    host_delay_s=0.0,
    host_connections=8,
    parser_idle_s=60.0,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the site saw it."""

    path: str
    headers: Mapping[str, str]
    at: float


type Fault = Callable[[anyio.abc.SocketStream], Awaitable[None]]
type Answers = dict[str, "Reply | Fault | list[Reply | Fault]"]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a path answers."""

    body: bytes = b""
    status: int = 200
    type: str = "text/html; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} X", f"Content-Length: {len(self.body)}"]
        lines += [f"Content-Type: {self.type}"] if self.type else []
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def html(body: str, *, title: str = "A page", head: str = "", lang: str = "en") -> Reply:
    page = (
        f"<!doctype html><html lang={lang}><head><title>{title}</title>{head}</head>"
        f"<body><main>{body}</main></body></html>"
    )
    return Reply(page.encode())


def redirect(location: str, status: int = 302) -> Reply:
    return Reply(status=status, headers=(("Location", location),))


def links(*targets: str) -> str:
    return "<p>These pages are linked from here.</p>" + "".join(
        f'<p>See <a href="{target}">the page</a>.</p>' for target in targets
    )


@dataclass
class Site:
    """Paths and what they answer; a list answers in turn, its last entry for ever."""

    origin: str = ""
    pages: Answers = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def url(self, path: str) -> str:
        return self.origin + path

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def paths(self) -> list[str]:
        return [request.path for request in self.requests if request.path != "/robots.txt"]

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        reader = BufferedByteReceiveStream(stream)
        async with stream:
            while True:
                try:
                    head = await reader.receive_until(b"\r\n\r\n", 65536)
                    reply = self._reply(head.decode("latin-1"))
                    if not isinstance(reply, Reply):
                        await reply(stream)
                        return
                    await stream.send(reply.encode())
                except (
                    anyio.IncompleteRead,
                    anyio.BrokenResourceError,
                    anyio.EndOfStream,
                    OSError,
                ):
                    return

    def _reply(self, head: str) -> Reply | Fault:
        first, *lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        path = first.split(" ")[1]
        self.requests.append(Request(path, headers, anyio.current_time()))
        found = self.pages.get(path, Reply(b"nothing here", 404, "text/plain"))
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(found, Reply):
            etag = dict(found.headers).get("ETag")
            since = dict(found.headers).get("Last-Modified")
            matches = etag and headers.get("if-none-match") == etag
            if matches or (since and headers.get("if-modified-since") == since):
                return Reply(status=304, type="", headers=found.headers)
        return found


@asynccontextmanager
async def serving(pages: Mapping[str, Reply | Fault | list[Reply | Fault]]) -> AsyncIterator[Site]:
    """Serve on a free port of loopback; `{origin}` in bodies is not replaced, use `site.url`."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
    site = Site(f"http://127.0.0.1:{port}", dict(pages))
    error: BaseException | None = None
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, site.serve)
        try:
            yield site
        except BaseException as raised:  # noqa: BLE001 - kept out of the group, and raised below
            error = raised
        group.cancel_scope.cancel()
    if error is not None:
        raise error


@dataclass
class Crawl:
    """A crawl's request and what came of it."""

    request: CrawlRequest
    kept: dict[str, Validators] = field(default_factory=dict)
    limits: CrawlLimits = FAST
    policy: EgressPolicy = LOCAL
    pages: list[Page] = field(default_factory=list)
    unchanged: dict[str, Validators] = field(default_factory=dict)
    progress: list[tuple[int, int, str]] = field(default_factory=list)

    async def run(self, extractor: Extractor) -> CrawlReport:
        async with crawl_client(self.policy, user_agent=AGENT, limits=self.limits) as client:
            return await crawl_site(
                self.request,
                client=client,
                extractor=extractor,
                known=self.known,
                on_page=self.on_page,
                on_unchanged=self.on_unchanged,
                on_progress=self.on_progress,
                limits=self.limits,
            )

    async def known(self, url: str) -> Validators | None:
        return self.kept.get(url)

    async def on_page(self, page: Page) -> None:
        self.pages.append(page)

    async def on_unchanged(self, url: str, validators: Validators) -> None:
        self.unchanged[url] = validators

    async def on_progress(self, done: int, total: int, message: str) -> None:
        self.progress.append((done, total, message))


def remember(page: Page, *, with_links: bool = True) -> Validators:
    """Keep of a page what a caller keeps for its next visit."""
    return Validators(
        page.etag, page.last_modified, page.content_hash, page.links if with_links else None
    )


async def hang(stream: anyio.abc.SocketStream) -> None:
    """Never answer."""
    await stream.receive()


async def reset(stream: anyio.abc.SocketStream) -> None:
    """Close without a word."""
    await stream.aclose()


async def half(stream: anyio.abc.SocketStream) -> None:
    """Promise more than is sent."""
    await stream.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 999\r\n\r\n<p>"
    )


async def stall(stream: anyio.abc.SocketStream) -> None:
    """Begin a body, and never go on."""
    await half(stream)
    await stream.receive()


async def drip_head(stream: anyio.abc.SocketStream) -> None:
    """Send a head a byte at a time, each well within a read's time limit."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000:
        await stream.send(bytes([byte]))
        await anyio.sleep(0.05)


async def drip_body(stream: anyio.abc.SocketStream) -> None:
    """Send a body that never ends, a byte at a time."""
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    for _ in range(10_000):
        await stream.send(b"x")
        await anyio.sleep(0.05)


async def endless(stream: anyio.abc.SocketStream) -> None:
    """Send as fast as the reader reads, for ever."""
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    while True:
        await stream.send(b"<p>more and more</p>" * 1000)


async def garbage(stream: anyio.abc.SocketStream) -> None:
    """Answer in no language of the web."""
    await stream.send(b"220 mail.example ESMTP ready\r\n")


def bomb(size_bytes: int, *, times: int = 1) -> Reply:
    """Return a page that unpacks to `size_bytes`, packed so many times."""
    body = b"\0" * size_bytes
    for _ in range(times):
        body = gzip.compress(body, 1)
    encoding = ", ".join(["gzip"] * times)
    return Reply(body, headers=(("Content-Encoding", encoding),))


def http_date(in_s: float, now: float) -> str:
    return formatdate(now + in_s, usegmt=True)
