"""No spelling of an address that is not public passes, whichever Hypothesis thinks of.

The oracle is Python's own reading of IANA's registries, which our table knows nothing of.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import cast
from urllib.parse import quote

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.egress import EgressDenied, EgressPolicy
from runtime.egress_explain import explain
from tests.runtime.ssrf_cases import CORPUS

pytestmark = pytest.mark.anyio

POLICY = EgressPolicy()
_WIDE = str.maketrans(
    "0123456789abcdefxABCDEFX", "０１２３４５６７８９ａｂｃｄｅｆｘＡＢＣＤＥＦＸ"
)
_DOTS = (".", "。", "．", "｡", "%2e", "%2E", "%E3%80%82")

inner_ipv4 = st.ip_addresses(v=4).filter(lambda found: not found.is_global)
inner_ipv6 = st.ip_addresses(v=6).filter(lambda found: not found.is_global)


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A spelling of a denied IPv4 address that some parser reads as one."""
    value = int(cast("IPv4Address", draw(inner_ipv4)))
    count = draw(st.integers(1, 4))
    leading = [value >> (24 - 8 * place) & 255 for place in range(count - 1)]
    parts = [*leading, value & (1 << 8 * (5 - count)) - 1]
    written = [_mangled(draw, _number(draw, part)) for part in parts]
    host = written[0] + "".join(draw(st.sampled_from(_DOTS)) + part for part in written[1:])
    return host + draw(st.sampled_from(["", ".", "。"]))


def _number(draw: st.DrawFn, value: int) -> str:
    zeros = "0" * draw(st.integers(0, 6))
    match draw(st.sampled_from("doxX")):
        case "d":
            return str(value)
        case "o":
            return f"0{zeros}{value:o}"
        case prefix:
            return f"0{prefix}{zeros}{draw(st.sampled_from([f'{value:x}', f'{value:X}']))}"


def _mangled(draw: st.DrawFn, text: str) -> str:
    ways = {
        "plain": text,
        "wide": text.translate(_WIDE),
        "escaped": "".join(f"%{ord(one):02x}" for one in text),
        "wide and escaped": quote(text.translate(_WIDE)),
    }
    return ways[draw(st.sampled_from(sorted(ways)))]


@st.composite
def carriers(draw: st.DrawFn) -> IPv6Address:
    """An IPv6 address that carries a denied IPv4 address in one of the known ways."""
    value = int(cast("IPv4Address", draw(inner_ipv4)))
    prefix = draw(st.sampled_from(["::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"]))
    teredo = int(IPv6Address("2001::")) | draw(st.integers(0, 2**64 - 1)) << 32
    isatap = int(IPv6Address("2606:4700::5efe:0:0")) | draw(st.integers(0, 2**32 - 1)) << 64
    carried = (
        int(IPv6Address(prefix)) | value,
        int(IPv6Address("2002::")) | value << 80 | draw(st.integers(0, 2**80 - 1)),
        teredo | value ^ 0xFFFF_FFFF,
        isatap | value,
    )
    return IPv6Address(draw(st.sampled_from(carried)))


def _written(address: IPv6Address, way: int) -> str:
    tail = IPv4Address(int(address) & 0xFFFF_FFFF)
    dotted = f"{address.exploded.rsplit(':', 2)[0]}:{tail}"
    return (str(address), address.exploded, address.exploded.upper(), dotted)[way]


@settings(max_examples=120, deadline=None)
@given(host=spellings(), port=st.sampled_from(["", ":80", ":8080", ":443"]))
def test_no_spelling_of_a_denied_ipv4_address_passes(host: str, port: str) -> None:
    with pytest.raises(EgressDenied):
        POLICY.check_literal(f"http://{host}{port}/")


@settings(max_examples=80, deadline=None)
@given(address=st.one_of(inner_ipv6, carriers()), way=st.integers(0, 3))
def test_no_spelling_of_a_denied_ipv6_address_passes(address: IPv6Address, way: int) -> None:
    with pytest.raises(EgressDenied):
        POLICY.check_literal(f"http://[{_written(address, way)}]/")


@settings(max_examples=40, deadline=None)
@given(answers=st.lists(st.one_of(inner_ipv4, inner_ipv6, carriers()), min_size=1, max_size=3))
def test_no_answer_of_a_resolver_that_is_not_public_passes(answers: list[IPv6Address]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        del host, port
        return ["8.8.8.8", *map(str, answers)]

    async def judge() -> None:
        with pytest.raises(EgressDenied):
            await EgressPolicy(resolver=resolve).resolve("innocent.example", 80)

    anyio.run(judge)


@settings(max_examples=80, deadline=None)
@given(url=st.text(max_size=60).map(lambda text: f"http://{text}/"))
def test_no_text_makes_the_guard_fail(url: str) -> None:
    try:
        target = POLICY.check_literal(url)
    except EgressDenied:
        return
    assert isinstance(target.host, str) or target.host.is_global


@pytest.mark.parametrize("group", CORPUS)
async def test_explanation_of_the_corpus_ends_in_the_refusal_of_the_guard(group: str) -> None:
    for url in CORPUS[group]:
        told = await explain(POLICY, url)
        with pytest.raises(EgressDenied) as caught:
            POLICY.check_literal(url)
        assert str(told.denied) == str(caught.value)
        assert not told.is_allowed


async def test_explanation_names_each_step_and_the_entry_that_permits() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        del port
        return {"wiki.example": ["10.0.0.5", "64:ff9b::808:808"]}.get(host, [])

    permitted = await explain(
        EgressPolicy(("10.0.0.0/8", "64:ff9b::/96"), resolve), "http://wiki.example/"
    )
    assert [step.detail for step in permitted.steps] == [
        "leads to host wiki.example, port 80",
        "nothing against them by themselves",
        "10.0.0.5 is private, permitted by entry '10.0.0.0/8'",
        "64:ff9b::808:808 is tunnel, permitted by entry '64:ff9b::/96' and carries 8.8.8.8, public",
    ]
    assert permitted.is_allowed
    denied = await explain(EgressPolicy((), resolve), "http://wiki.example/")
    assert denied.steps[-1].detail == "10.0.0.5 is private, not allowed"
    assert denied.denied is not None
    assert denied.denied.entry == "wiki.example"
    gone = await explain(EgressPolicy((), resolve), "http://gone.example/")
    assert (gone.denied, gone.is_allowed) == (None, False)
    assert "does not resolve" in gone.steps[-1].detail
    named = await explain(EgressPolicy(("wiki.example",), resolve), "http://wiki.example/")
    assert named.steps[1].detail == "entry 'wiki.example' names them"
    assert named.is_allowed
