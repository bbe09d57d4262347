"""The guard lets none of the corpus through, and connects to nothing but what it judged."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import anyio
import anyio.abc
import httpx
import pytest

from runtime.egress import EgressDenied, EgressPolicy, Target, guarded_client
from tests.runtime.ssrf_cases import ANSWERS, IPV6, LOOPBACK_SPELLINGS, PRIVATE_IPV4, URLS

pytestmark = pytest.mark.anyio

_TIMEOUT = httpx.Timeout(5.0)
_LITERALS = [f"http://{host}/" for host in LOOPBACK_SPELLINGS + PRIVATE_IPV4 + IPV6]


@dataclass
class Resolver:
    """Answers from a script, the last answer for ever, and remembers what it was asked."""

    answers: list[list[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        del port
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@dataclass
class Server:
    """A real listener on loopback that counts connections and keeps the requests' heads."""

    port: int
    reply: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            self.connections += 1
            self.heads.append(await stream.receive())
            await stream.send(self.reply)


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Server(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - not Django
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        yield server
        group.cancel_scope.cancel()


def test_corpus_is_as_large_as_promised() -> None:
    assert len(set(_LITERALS + URLS)) + len(ANSWERS) >= 250


@pytest.mark.parametrize("url", _LITERALS + URLS)
async def test_url_of_the_corpus_is_refused_at_submit(url: str) -> None:
    with pytest.raises(EgressDenied) as caught:
        EgressPolicy().check_literal(url)
    assert f"rule {caught.value.rule!r}" in str(caught.value)


@pytest.mark.parametrize("url", _LITERALS + URLS)
async def test_url_of_the_corpus_reaches_no_resolver_and_no_socket(url: str) -> None:
    resolver = Resolver([["127.0.0.1"]])
    async with guarded_client(EgressPolicy(resolver=resolver), timeout=_TIMEOUT) as client:
        with pytest.raises(
            (EgressDenied, httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError)
        ):
            await client.get(url)
    # A name that httpx itself rewrote may be resolved; nothing that it resolves to passes.
    assert resolver.asked in ([], ["example.com"])


@pytest.mark.parametrize("answers", ANSWERS, ids=",".join)
async def test_name_that_resolves_into_the_corpus_is_refused(answers: list[str]) -> None:
    policy = EgressPolicy(resolver=Resolver([answers]))
    assert policy.check_literal("http://innocent.example/") == Target("innocent.example", 80)
    with pytest.raises(EgressDenied) as caught:
        await policy.resolve("innocent.example", 80)
    assert caught.value.entry == "innocent.example"
    assert not any(answer in str(caught.value) for answer in answers), "tells the inner address"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "ip6-localhost"])
async def test_local_name_is_refused_at_fetch(host: str) -> None:
    policy = EgressPolicy(resolver=Resolver([["127.0.0.1", "::1"]]))
    with pytest.raises(EgressDenied, match="loopback"):
        await policy.resolve(host, 80)


async def test_rebinding_answer_is_never_asked_for() -> None:
    """The second answer of a rebinding name is loopback: nobody may ask for it."""
    async with serving() as server:
        # The first answer is a public-looking address that the policy permits and that is ours.
        resolver = Resolver([["127.0.0.1"], ["127.0.0.66"]])
        policy = EgressPolicy(("127.0.0.1",), resolver)
        async with guarded_client(policy, timeout=_TIMEOUT) as client:
            answer = await client.get(f"http://rebinding.example:{server.port}/")
            assert answer.text == "ok"
            assert resolver.asked == ["rebinding.example"], "resolved more than once"
            with pytest.raises(EgressDenied, match="loopback"):
                await client.get(f"http://rebinding.example:{server.port}/")
        assert server.connections == 1
        assert b"Host: rebinding.example" in server.heads[0], "the name went to the server"


async def test_redirect_to_a_private_address_is_refused_on_its_hop() -> None:
    async with serving() as inner, serving() as outer:
        location = f"http://127.0.0.2:{inner.port}/".encode()
        outer.reply = (
            b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
        )
        policy = EgressPolicy(("127.0.0.1",))
        async with guarded_client(policy, timeout=_TIMEOUT) as client:
            with pytest.raises(EgressDenied, match="loopback"):
                await client.get(f"http://127.0.0.1:{outer.port}/", follow_redirects=True)
        assert (outer.connections, inner.connections) == (1, 0)


async def test_redirect_chain_through_names_is_judged_at_every_hop() -> None:
    async with serving() as first, serving() as second:
        location = f"http://second.example:{second.port}/".encode()
        head = b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: "
        first.reply = head + location + b"\r\n\r\n"
        second.reply = head + b"http://metadata.example/latest/\r\n\r\n"
        resolver = Resolver([["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]])
        async with guarded_client(
            EgressPolicy(("127.0.0.1",), resolver), timeout=_TIMEOUT
        ) as client:
            with pytest.raises(EgressDenied, match="metadata"):
                await client.get(f"http://first.example:{first.port}/", follow_redirects=True)
        assert resolver.asked == ["first.example", "second.example", "metadata.example"]


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy, serving() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with guarded_client(EgressPolicy(("127.0.0.0/8",)), timeout=_TIMEOUT) as client:
            await client.get(f"http://127.0.0.1:{server.port}/")
        assert (proxy.connections, server.connections) == (0, 1)


async def test_cookies_are_not_carried_from_one_fetch_to_the_next() -> None:
    async with serving() as server:
        server.reply = server.reply.replace(b"200 OK\r\n", b"200 OK\r\nSet-Cookie: id=1\r\n")
        async with guarded_client(EgressPolicy(("127.0.0.0/8",)), timeout=_TIMEOUT) as client:
            for _ in range(2):
                await client.get(f"http://127.0.0.1:{server.port}/")
        assert not any(b"cookie" in head.lower() for head in server.heads)


async def test_next_address_is_tried_when_the_first_does_not_answer() -> None:
    async with serving() as server:
        policy = EgressPolicy(("127.0.0.0/8",), Resolver([["127.0.0.77", "127.0.0.1"]]))
        async with guarded_client(policy, timeout=_TIMEOUT) as client:
            assert (await client.get(f"http://two.example:{server.port}/")).text == "ok"


async def test_name_without_an_answer_is_a_connect_error() -> None:
    async with guarded_client(EgressPolicy(resolver=Resolver([[]])), timeout=_TIMEOUT) as client:
        with pytest.raises(httpx.ConnectError, match=r"gone\.example"):
            await client.get("http://gone.example/")


async def test_resolver_that_hangs_is_a_connect_timeout() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await anyio.sleep_forever()
        raise AssertionError(host, port)

    timeout = httpx.Timeout(5.0, connect=0.05)
    async with guarded_client(EgressPolicy(resolver=hang), timeout=timeout) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://slow.example/")


async def test_server_that_resets_is_an_httpx_error() -> None:
    async with serving() as server:
        server.reply = b""
        async with guarded_client(EgressPolicy(("127.0.0.0/8",)), timeout=_TIMEOUT) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "https://example.com:8443/a?b", "http://EXAMPLE.com.:8080/",
        "http://bücher.example/", "http://xn--bcher-kva.example/", "http://8.8.8.8/",
        "http://0x08080808/", "https://[2606:4700:4700::1111]/", "http://a_b.example.com/",
        "http://[::ffff:8.8.8.8]/", "http://1e100.net/", "http://127.0.0.1.nip.io/",
    ],
)  # fmt: skip
async def test_public_target_is_permitted_at_submit(url: str) -> None:
    EgressPolicy().check_literal(url)


@pytest.mark.parametrize(
    "url",
    [f"http://{host}/" for host in ("127.0.0.1", "10.0.0.5", "[fd00::1]", "169.254.169.254")]
    + ["http://127.0.0.1:6379/", "http://[::1]:22/", "http://intranet.example:25/"],
)
async def test_entry_that_the_refusal_names_permits_the_url(url: str) -> None:
    with pytest.raises(EgressDenied) as caught:
        EgressPolicy().check_literal(url)
    assert caught.value.entry is not None
    assert repr(caught.value.entry) in str(caught.value)
    EgressPolicy((caught.value.entry,)).check_literal(url)


async def test_entry_that_the_refusal_of_a_name_names_permits_the_name() -> None:
    resolver = Resolver([["10.0.0.5"]])
    with pytest.raises(EgressDenied) as caught:
        await EgressPolicy(resolver=resolver).resolve("intranet.example", 80)
    permitted = EgressPolicy((str(caught.value.entry),), resolver)
    assert await permitted.resolve("Intranet.Example.", 80) == [ip_address("10.0.0.5")]


async def test_network_of_the_allow_list_permits_every_spelling_and_names_inside_it() -> None:
    policy = EgressPolicy(("127.0.0.0/8",), Resolver([["127.0.0.1"]]))
    for url in ("http://127.1:43210/", "http://2130706433/", "http://[::ffff:7f00:1]/"):
        policy.check_literal(url)
    assert await policy.resolve("localhost", 43210) == [ip_address("127.0.0.1")]


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("10.0.0.0/8", "http://192.168.0.1/"),
        ("127.0.0.0/8", "http://127.0.0.1:6379/"),
        ("127.0.0.1:8080", "http://127.0.0.1:8081/"),
        ("169.254.0.0/16", "http://169.254.169.254/"),
        ("0.0.0.0/0", "http://169.254.169.254/"),
        ("0.0.0.0/0", "http://[::1]/"),
        ("64:ff9b::/96", "http://[64:ff9b::7f00:1]/"),
        ("2002::/16", "http://[2002:a9fe:a9fe::]/"),
        ("intranet.example", "http://intranet.example:6379/"),
    ],
)
async def test_entry_permits_no_more_than_it_says(allow: str, url: str) -> None:
    with pytest.raises(EgressDenied):
        EgressPolicy((allow,)).check_literal(url)


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "not a host", "", "http://a.example/", "10.0.0/8"])
def test_bad_entry_is_refused_with_the_fix(entry: str) -> None:
    with pytest.raises(ValueError, match=r"EGRESS_ALLOW entry .* write a network"):
        EgressPolicy((entry,))
