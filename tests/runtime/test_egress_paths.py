"""The corpus through both doors that lead out, the crawler's and the webhooks': no connection.

What counts is the kernel's word: an audit hook sees every connect of this process.
"""

import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import anyio
import anyio.abc
import pytest

from crawl import urls
from crawl.errors import PageError
from crawl.fetch import crawl_client, fetch
from crawl.limits import CrawlLimits
from crawl.pages import Reason
from runtime.egress import EgressPolicy
from tests.runtime.ssrf_cases import ANSWERS, CORPUS, INNER, LOCATIONS, REBINDINGS, SAFE, Rebinding
from tests.webhooks.test_request import OWED
from webhooks.request import send
from webhooks.wire import Wire

pytestmark = pytest.mark.anyio

_AGENT = "xnai/0.1 (+https://example.org/bot)"
_LIMITS = CrawlLimits()
_NOW = datetime(2026, 5, 1, tzinfo=UTC)
_CONNECTS: list[str] = []


def _note_connect(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and _WATCHED:
        connecting, address = arguments
        assert isinstance(connecting, socket.socket)
        if connecting.family != socket.AF_UNIX and connecting.type == socket.SOCK_STREAM:
            assert isinstance(address, tuple)
            _CONNECTS.append(str(address[0]))


_WATCHED: list[bool] = []
# It cannot be taken away again, and does nothing while nobody watches.
sys.addaudithook(_note_connect)


@contextmanager
def connects() -> Iterator[list[str]]:
    """The addresses that this process connects to within the block."""
    _CONNECTS.clear()
    _WATCHED.append(True)
    try:
        yield _CONNECTS
    finally:
        _WATCHED.clear()


@dataclass
class Names:
    """A resolver of the test: each name answers in turn, its last answer for ever."""

    answers: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    default: tuple[str, ...] = (INNER,)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        del port
        answers = self.answers.get(host, [self.default])
        return answers.pop(0) if len(answers) > 1 else answers[0]


type Door = Callable[[EgressPolicy], "Opened"]


@dataclass(frozen=True, slots=True)
class Opened:
    """One of the two ways out. `visit` answers how it was refused, None when it got an answer."""

    closing: AbstractAsyncContextManager[object]
    visit: Callable[[str], Awaitable[str | None]]


def crawling(policy: EgressPolicy) -> Opened:
    client = crawl_client(policy, user_agent=_AGENT, limits=_LIMITS)

    async def visit(url: str) -> str | None:
        canonical = urls.canonical(url)  # as crawl/site.py reads what it is given, and each link
        if canonical is None:
            return Reason.BAD_URL
        try:
            await fetch(client, canonical, limits=_LIMITS, admit=_admit_all)
        except PageError as error:
            return error.reason
        return None

    return Opened(client, visit)


async def _admit_all(hop: str) -> None:
    del hop


def delivering(policy: EgressPolicy) -> Opened:
    wire = Wire(policy)

    async def visit(url: str) -> str | None:
        return (await send(wire, replace(OWED, url=url), now=_NOW)).error_type

    return Opened(aclosing(wire), visit)


DOORS = pytest.mark.parametrize("door", [crawling, delivering])
_REFUSALS = {Reason.EGRESS, Reason.BAD_URL, Reason.PROTOCOL, "blocked", "bad_url", "protocol"}


@dataclass
class Server:
    """A listener that answers the requests of a connection in turn, and closes."""

    port: int
    replies: list[bytes]

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            for reply in self.replies:
                await stream.receive()
                await stream.send(reply)


OK = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 2\r\nConnection: close\r\n\r\nok"
)


@asynccontextmanager
async def serving(
    host: str = SAFE, port: int = 0, replies: Sequence[bytes] = (OK,)
) -> AsyncIterator[Server]:
    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    taken = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
    async with listener, anyio.create_task_group() as group:
        server = Server(taken, list(replies))
        group.start_soon(listener.serve, server.serve)
        yield server
        group.cancel_scope.cancel()


def redirecting(location: str, status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} Go\r\nConnection: close\r\nContent-Length: 0\r\nLocation: "
    return head.encode() + location.encode() + b"\r\n\r\n"


@DOORS
@pytest.mark.parametrize("group", CORPUS)
async def test_url_of_the_corpus_reaches_no_socket(door: Door, group: str) -> None:
    opened = door(EgressPolicy(resolver=Names()))
    async with opened.closing:
        with connects() as connected:
            told = {url: await opened.visit(url) for url in CORPUS[group]}
    assert connected == []
    assert {url: how for url, how in told.items() if how not in _REFUSALS} == {}


@DOORS
async def test_name_that_resolves_into_the_corpus_reaches_no_socket(door: Door) -> None:
    names = Names({f"n{n}.example": [tuple(answers)] for n, answers in enumerate(ANSWERS)})
    opened = door(EgressPolicy(resolver=names))
    async with opened.closing:
        with connects() as connected:
            told = {await opened.visit(f"http://{name}/") for name in names.answers}
    assert connected == []
    assert told <= {Reason.EGRESS, "blocked"}


@DOORS
@pytest.mark.parametrize("case", REBINDINGS, ids=lambda case: case.name)
async def test_name_that_rebinds_reaches_nothing_but_what_was_judged(
    door: Door, case: Rebinding
) -> None:
    names = Names({"rebinding.example": list(case.answers)})
    opened = door(EgressPolicy((SAFE,), names))
    async with serving() as outer, serving(INNER, outer.port), opened.closing:
        with connects() as connected:
            url = f"http://rebinding.example:{outer.port}/"
            told = [await opened.visit(url) for _ in range(case.fetches)]
    *before, last = told
    assert set(before) <= {None}
    assert last in {Reason.EGRESS, "blocked"}
    assert connected == [SAFE] * len(before)


@pytest.mark.parametrize(
    ("status", "hops", "locations"),
    [
        (302, 1, LOCATIONS),
        *((status, 1, LOCATIONS[:2]) for status in (301, 303, 307, 308)),
        (307, 3, ["http://inner.example:{inner}/", "http://metadata.example/", "gopher://x:70/"]),
        (302, 6, ["http://127.0.0.2:{inner}/", "http://localhost:{inner}/", "file:///etc/passwd"]),
    ],
)
async def test_redirects_of_the_corpus_are_refused_at_their_hop(
    status: int, hops: int, locations: list[str]
) -> None:
    """Public → … → public → inside, through the crawler; every connection stays outside."""
    names = Names({"mixed.example": [(SAFE, INNER)], "metadata.example": [("169.254.169.254",)]})
    names.answers |= {name: [(SAFE,)] for name in [f"n{n}.example" for n in range(1, hops + 1)]}
    names.answers["outer.example"] = [(SAFE,)]
    opened = crawling(EgressPolicy((SAFE,), names))
    passed = []
    async with _chain(hops, status) as servers, serving(INNER) as inner, opened.closing:
        for location in locations:
            target = location.format(inner=inner.port, outer=servers[0].port)
            servers[-1].replies = [redirecting(target, status)]
            with connects() as connected:
                how = await opened.visit(f"http://outer.example:{servers[0].port}/")
            if how not in _REFUSALS or connected != [SAFE] * hops:
                passed.append((target, how, list(connected)))
    assert passed == []


@asynccontextmanager
async def _chain(hops: int, status: int) -> AsyncIterator[list[Server]]:
    """Servers of which each sends to the next."""
    async with serving() as last:
        if hops == 1:
            yield [last]
            return
        async with _chain(hops - 1, status) as others:
            last.replies = [redirecting(f"http://n{hops}.example:{others[0].port}/", status)]
            yield [last, *others]


async def test_webhook_follows_no_redirect_at_all() -> None:
    opened = delivering(EgressPolicy((SAFE,), Names({"outer.example": [(SAFE,)]})))
    async with serving() as outer, serving(INNER) as inner, opened.closing:
        for location in LOCATIONS:
            target = location.format(inner=inner.port, outer=outer.port)
            outer.replies = [redirecting(target)]
            with connects() as connected:
                how = await opened.visit(f"http://outer.example:{outer.port}/")
            assert (how, connected) == ("redirected", [SAFE]), location


@DOORS
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
async def test_proxy_of_the_environment_is_not_used(
    door: Door, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as server, serving(INNER) as proxy:
        monkeypatch.setenv(variable, f"http://{INNER}:{proxy.port}")
        opened = door(EgressPolicy((SAFE,), Names({"outer.example": [(SAFE,)]})))
        async with opened.closing:
            with connects() as connected:
                assert await opened.visit(f"http://outer.example:{server.port}/") is None
    assert connected == [SAFE]


async def test_alternative_service_is_not_followed() -> None:
    async with serving() as server, serving(INNER) as inner:
        offer = f'Alt-Svc: h2="{INNER}:{inner.port}", http/1.1="{INNER}:{inner.port}"; ma=86400'
        server.replies = [OK.replace(b"200 OK\r\n", f"200 OK\r\n{offer}\r\n".encode())]
        opened = crawling(EgressPolicy((SAFE,)))
        async with opened.closing:
            with connects() as connected:
                for _ in range(3):
                    assert await opened.visit(f"http://{SAFE}:{server.port}/") is None
    assert connected == [SAFE] * 3


async def test_connection_that_is_kept_stays_with_the_address_that_was_judged() -> None:
    """A name that rebinds meanwhile gains nothing; when the connection ends it is judged anew."""
    names = Names({"kept.example": [(SAFE,), (INNER,)]})
    kept = OK.replace(b"Connection: close\r\n", b"")
    opened = crawling(EgressPolicy((SAFE,), names))
    async with serving(replies=[kept, kept, OK]) as server, opened.closing:
        with connects() as connected:
            url = f"http://kept.example:{server.port}/"
            assert [await opened.visit(url) for _ in range(3)] == [None, None, None]
            assert connected == [SAFE]
            assert await opened.visit(url) == Reason.EGRESS
    assert connected == [SAFE]
