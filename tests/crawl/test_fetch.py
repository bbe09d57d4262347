"""Every way in which a server can fail, lie or stall ends in a typed outcome, in bounded time."""

import gzip
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import httpx
import pytest

from crawl.errors import PageError, Throttled
from crawl.fetch import Fetched, crawl_client, fetch
from crawl.pages import Reason, Validators
from tests.crawl import local_site
from tests.crawl.local_site import AGENT, FAST, LOCAL, Fault, Reply, Site, html, redirect, serving

pytestmark = pytest.mark.anyio


async def admit_all(hop: str) -> None:
    del hop


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with crawl_client(LOCAL, user_agent=AGENT, limits=FAST) as found:
        yield found


async def fetched(client: httpx.AsyncClient, reply: Reply | Fault) -> Fetched:
    async with serving({"/": reply}) as site:
        return await fetch(client, site.url("/"), limits=FAST, admit=admit_all)


async def failure(client: httpx.AsyncClient, reply: Reply | Fault) -> PageError:
    with pytest.raises(PageError) as caught:
        await fetched(client, reply)
    return caught.value


async def test_page_arrives_with_what_asks_for_it_again(client: httpx.AsyncClient) -> None:
    headers = (("ETag", '"v1"'), ("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT"))
    reply = replace(html("<p>words</p>"), headers=headers)
    async with serving({"/": reply}) as site:
        found = await fetch(client, site.url("/"), limits=FAST, admit=admit_all)
        assert (found.etag, found.last_modified) == ('"v1"', "Sun, 22 Nov 2026 10:00:00 GMT")
        assert (found.charset, found.media_type, found.status) == ("utf-8", "text/html", 200)
        assert site.requests[0].headers["user-agent"] == AGENT
        assert site.requests[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("kept", [Validators(etag='"v1"'), Validators(last_modified="then")])
async def test_page_that_did_not_change_has_no_body(
    client: httpx.AsyncClient, kept: Validators
) -> None:
    reply = replace(html("<p>words</p>"), headers=(("ETag", '"v1"'), ("Last-Modified", "then")))
    async with serving({"/": reply}) as site:
        found = await fetch(client, site.url("/"), limits=FAST, admit=admit_all, validators=kept)
    assert (found.status, found.body) == (304, None)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (local_site.hang, Reason.FIRST_BYTE_TIMEOUT),
        (local_site.drip_head, Reason.FIRST_BYTE_TIMEOUT),
        (local_site.stall, Reason.STALLED),
        (local_site.drip_body, Reason.PAGE_TIMEOUT),
        (local_site.reset, Reason.PROTOCOL),
        (local_site.half, Reason.PROTOCOL),
        (local_site.garbage, Reason.PROTOCOL),
        (local_site.endless, Reason.TOO_LARGE),
        (Reply(b"x" * (FAST.page_bytes + 1)), Reason.TOO_LARGE),
        (local_site.bomb(200 * 1024 * 1024), Reason.TOO_LARGE),
        (local_site.bomb(1024 * 1024, times=2), Reason.ENCODING),
        (Reply(b"x", headers=(("Content-Encoding", "br"),)), Reason.ENCODING),
        (Reply(b"not gzip", headers=(("Content-Encoding", "gzip"),)), Reason.ENCODING),
        (Reply(b""), Reason.EMPTY),
        (Reply(b"x", 404), Reason.HTTP_STATUS),
        (Reply(b"x", 500), Reason.HTTP_STATUS),
        (Reply(b"x", 204), Reason.HTTP_STATUS),
        (Reply(b"\x89PNG", type="image/png"), Reason.UNSUPPORTED_TYPE),
        (Reply(b"{}", type="application/json"), Reason.UNSUPPORTED_TYPE),
        (redirect("/"), Reason.REDIRECT_LOOP),
        (redirect("ftp://example.com/"), Reason.BAD_URL),
        (redirect("file:///etc/passwd"), Reason.BAD_URL),
        (redirect("http://10.0.0.1/"), Reason.EGRESS),
        (redirect("http://169.254.169.254/latest"), Reason.EGRESS),
    ],
)
async def test_fault_is_typed(
    client: httpx.AsyncClient, reply: Reply | Fault, reason: Reason
) -> None:
    started = time.monotonic()
    assert (await failure(client, reply)).reason is reason
    assert time.monotonic() - started < FAST.page_s + 5


async def test_nobody_listens(client: httpx.AsyncClient) -> None:
    async with serving({}) as site:
        url = site.url("/")
    with pytest.raises(PageError) as caught:
        await fetch(client, url, limits=FAST, admit=admit_all)
    assert caught.value.reason is Reason.UNREACHABLE


async def test_bomb_is_not_unpacked_before_it_is_refused(client: httpx.AsyncClient) -> None:
    """Half a gigabyte when unpacked: the first ten megabytes must be enough to know."""
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = b"".join(packer.compress(b"\0" * 2**20) for _ in range(512)) + packer.flush()
    started = time.monotonic()
    reply = Reply(packed, headers=(("Content-Encoding", "gzip"),))
    assert (await failure(client, reply)).reason is Reason.TOO_LARGE
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("identity", bytes),
    ],
)
async def test_encodings_are_undone(client: httpx.AsyncClient, encoding: str, pack: object) -> None:
    body = html("<p>words and words</p>" * 1000).body
    assert callable(pack)
    reply = Reply(pack(body), headers=(("Content-Encoding", encoding),))
    assert (await fetched(client, reply)).body == body


async def test_ten_megabytes_arrive(client: httpx.AsyncClient) -> None:
    body = b"<p>" + b"word " * (FAST.page_bytes // 5 - 1)
    assert (await fetched(client, Reply(body))).body == body


async def test_redirects_are_followed_and_each_is_judged(client: httpx.AsyncClient) -> None:
    hops: list[str] = []

    async def admit(hop: str) -> None:
        hops.append(hop)

    async with serving({f"/{n}": redirect(f"/{n + 1}") for n in range(10)}) as site:
        site.pages["/10"] = html("<p>there</p>")
        found = await fetch(client, site.url("/0"), limits=FAST, admit=admit)
        assert found.final_url == site.url("/10")
        assert hops == [site.url(f"/{n}") for n in range(11)]


async def test_eleventh_redirect_is_too_many(client: httpx.AsyncClient) -> None:
    async with serving({f"/{n}": redirect(f"/{n + 1}") for n in range(12)}) as site:
        with pytest.raises(PageError) as caught:
            await fetch(client, site.url("/0"), limits=FAST, admit=admit_all)
    assert caught.value.reason is Reason.TOO_MANY_REDIRECTS


async def test_hop_that_is_not_admitted_is_not_asked(client: httpx.AsyncClient) -> None:
    async def admit(hop: str) -> None:
        if hop.endswith("/secret"):
            raise PageError(Reason.ROBOTS, "no")

    async with serving({"/": redirect("/secret"), "/secret": html("x")}) as site:
        with pytest.raises(PageError, match="no"):
            await fetch(client, site.url("/"), limits=FAST, admit=admit)
        assert not site.asked("/secret")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7.0, 7.0),
        (local_site.http_date(7200, time.time()), 1.0, 7200.0),
        (local_site.http_date(-60, time.time()), 0.0, 0.0),
    ],
    ids=["seconds", "date", "past"],
)
async def test_retry_after_is_read(
    client: httpx.AsyncClient, status: int, value: str, least: float, most: float
) -> None:
    error = await failure(client, Reply(b"x", status, headers=(("Retry-After", value),)))
    assert isinstance(error, Throttled)
    assert error.retry_after_s is not None
    assert least <= error.retry_after_s <= most


@pytest.mark.parametrize("value", ["soon", "-1", "", "1e9", "٣"])
async def test_retry_after_that_means_nothing_is_ignored(value: str) -> None:
    """A mock, since no real server sends a header that is not ASCII."""
    transport = httpx.MockTransport(
        lambda request: httpx.Response(
            429, headers=[(b"Retry-After", value.encode())], request=request
        )
    )
    async with httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(Throttled) as caught:
            await fetch(client, "http://example.com/", limits=FAST, admit=admit_all)
    assert caught.value.retry_after_s is None


async def test_cancelled_fetch_leaves_no_connection(client: httpx.AsyncClient) -> None:
    entered = anyio.Event()

    async def wait(stream: anyio.abc.SocketStream) -> None:
        entered.set()
        await local_site.hang(stream)

    async def run(site: Site) -> None:
        await fetch(client, site.url("/"), limits=FAST, admit=admit_all)

    async with serving({"/": wait, "/next": html("<p>fine</p>")}) as site:
        async with anyio.create_task_group() as group:
            group.start_soon(run, site)
            await entered.wait()
            group.cancel_scope.cancel()
        found = await fetch(client, site.url("/next"), limits=FAST, admit=admit_all)
    assert found.status == 200
