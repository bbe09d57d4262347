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
from runtime.egress_policy import is_own
from tests.runtime.ssrf_cases import ANSWERS, CORPUS, LOCAL_NAMES, LOCATIONS, REBINDINGS

pytestmark = pytest.mark.anyio

_TIMEOUT = httpx.Timeout(5.0)


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
    cases = {url for urls in CORPUS.values() for url in urls}
    assert len(cases) + len(ANSWERS) + len(REBINDINGS) + len(LOCATIONS) >= 400


@pytest.mark.parametrize("group", CORPUS)
def test_url_of_the_corpus_is_refused_at_submit(group: str) -> None:
    """A failure names every URL that got through, not the first one."""
    passed = []
    for url in CORPUS[group]:
        try:
            passed.append(f"{url!r} as {EgressPolicy().check_literal(url)}")
        except EgressDenied:
            continue
    assert passed == []


@pytest.mark.parametrize("answers", ANSWERS, ids=",".join)
async def test_name_that_resolves_into_the_corpus_is_refused(answers: list[str]) -> None:
    policy = EgressPolicy(resolver=Resolver([answers]))
    assert policy.check_literal("http://innocent.example/") == Target("innocent.example", 80)
    with pytest.raises(EgressDenied) as caught:
        await policy.resolve("innocent.example", 80)
    if caught.value.rule == "metadata":
        assert caught.value.entry in {answer.partition("%")[0] for answer in answers}
    else:
        assert caught.value.entry == "innocent.example"
        assert not any(answer in str(caught.value) for answer in answers), "tells the inner address"


async def test_local_name_is_refused_without_asking_a_resolver() -> None:
    resolver = Resolver([["8.8.8.8"]])
    for host in LOCAL_NAMES:
        with pytest.raises(EgressDenied) as caught:
            await EgressPolicy(resolver=resolver).resolve(host, 80)
        assert caught.value.rule in {"loopback", "local-name"}
        assert caught.value.entry is not None
    assert resolver.asked == []


async def test_local_name_is_permitted_when_all_its_addresses_lie_in_an_allowed_network() -> None:
    resolver = Resolver([["10.0.0.5"], ["8.8.8.8"], ["10.0.0.5", "8.8.8.8"]])
    policy = EgressPolicy(("10.0.0.0/8",), resolver)
    policy.check_literal("http://wiki.internal/")
    assert await policy.resolve("wiki.internal", 80) == [ip_address("10.0.0.5")]
    for _ in range(2):
        with pytest.raises(EgressDenied, match="local-name"):
            await policy.resolve("wiki.internal", 80)


async def test_address_of_this_machine_is_refused_although_public() -> None:
    public = ip_address("8.8.8.8")
    policy = EgressPolicy((), Resolver([["8.8.8.8"]]), lambda address: address == public)
    with pytest.raises(EgressDenied, match="this machine itself") as caught:
        await policy.resolve("own.example", 80)
    assert (caught.value.rule, caught.value.entry) == ("own", "own.example")
    for entry in ("own.example", "8.8.8.8"):
        allowing = EgressPolicy((entry,), policy.resolver, policy.own)
        assert await allowing.resolve("own.example", 80) == [public]


def test_kernel_tells_which_addresses_are_its_own() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("203.0.113.9"))
    assert not is_own(ip_address("2001:db8::9"))


async def test_name_that_is_allowed_does_not_lead_to_metadata() -> None:
    resolver = Resolver([["169.254.169.254"]])
    allows = (("wiki.example",), ("*.example",), ("wiki.example:80",), ("169.254.0.0/16",))
    for allow in allows:
        with pytest.raises(EgressDenied) as caught:
            await EgressPolicy(allow, resolver).resolve("wiki.example", 80)
        assert (caught.value.rule, caught.value.entry) == ("metadata", "169.254.169.254")
    allowing = EgressPolicy(("169.254.169.254",), resolver)
    assert await allowing.resolve("wiki.example", 80) == [ip_address("169.254.169.254")]


async def test_entry_of_a_domain_permits_the_names_below_it() -> None:
    resolver = Resolver([["10.0.0.5"]])
    policy = EgressPolicy(("*.corp.example",), resolver)
    assert await policy.resolve("a.b.CORP.example.", 80) == [ip_address("10.0.0.5")]
    for host in ("corp.example", "evilcorp.example", "corp.example.org"):
        with pytest.raises(EgressDenied):
            await policy.resolve(host, 80)
    with pytest.raises(EgressDenied, match="port"):
        await policy.resolve("a.corp.example", 6379)


async def test_nat64_that_is_allowed_is_judged_by_every_address_that_it_may_carry() -> None:
    policy = EgressPolicy(("64:ff9b::/96", "64:ff9b:1::/48"))
    for public in ("64:ff9b::808:808", "64:ff9b:1::808:808", "64:ff9b:1:808:8:800::"):
        policy.check_literal(f"http://[{public}]/")
    for inner in (
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "64:ff9b:1:7f00:0:100::"),
        *("64:ff9b:1:0a:0:1::", "64:ff9b:1:0:a:0:100:0", "64:ff9b:1:a9fe:a9:fe00::"),
    ):
        with pytest.raises(EgressDenied):
            policy.check_literal(f"http://[{inner}]/")


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
