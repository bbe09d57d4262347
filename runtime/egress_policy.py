"""What may be reached from this machine: the rules, the allow-list, and the verdict on a URL.

Judges and resolves, but opens no connection: runtime/egress.py connects to what is judged here.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address, ip_network
from typing import override
from urllib.parse import SplitResult, urlsplit

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from runtime.addresses import (
    Address,
    HostSyntaxError,
    Network,
    carried_ipv4,
    denied_as,
    parse_host,
    unmap,
)

type Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_SCHEME_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65535
_PRIVILEGED = 1024
# Services that speak something else and obey a line of text, above the privileged ports: WHATWG's
# "bad ports" (https://fetch.spec.whatwg.org/#port-blocking) and common databases.
# fmt: off
_ODD_PORTS = frozenset({
    1433, 1521, 1719, 1720, 1723, 2049, 2181, 2375, 2376, 2379, 2380, 3306, 3389, 3659, 4045, 4190,
    4369, 5060, 5061, 5432, 5672, 5900, 5984, 6000, 6379, 6432, 6443, 6566, 6665, 6666, 6667, 6668,
    6669, 6679, 6697, 8500, 9042, 9092, 9200, 9300, 10080, 10250, 11211, 25672, 26379, 27017,
})
# fmt: on
_FIX = "an operator may permit it with the EGRESS_ALLOW entry {entry!r}"
_NO_FIX = "no EGRESS_ALLOW entry permits it"


class EgressDenied(Exception):
    """The guard refused: by `rule`; `entry` is the EGRESS_ALLOW entry that would permit it."""

    def __init__(self, rule: str, detail: str, entry: str | None = None) -> None:
        fix = _FIX.format(entry=entry) if entry else _NO_FIX
        super().__init__(f"{detail} (rule {rule!r}); {fix}")
        self.rule = rule
        self.entry = entry


RESOLVERS = 64
_THREADS: RunVar[anyio.CapacityLimiter] = RunVar("xnai_resolver_threads")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads: its host normalised, as an address when it is written as one."""

    host: Address | str
    port: int

    @override
    def __str__(self) -> str:
        if isinstance(self.host, IPv6Address):
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Resolve by the machine's own resolver, in its order of preference.

    In threads of its own: the event loop has only a few, and names whose servers hang would keep
    all of them, and with them every other fetch and delivery.
    """
    try:
        threads = _THREADS.get()
    except LookupError:
        threads = anyio.CapacityLimiter(RESOLVERS)
        _THREADS.set(threads)
    answers = await anyio.to_thread.run_sync(
        partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM),
        abandon_on_cancel=True,
        limiter=threads,
    )
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What may be reached: public addresses, and what `allow` (CIDRs, hosts, host:port) adds.

    An entry without a port permits every port that is not a known service's; one with a port
    permits exactly that. A metadata address needs an entry of its own, a network is not enough.
    """

    allow: tuple[str, ...] = ()
    resolver: Resolver = field(default=resolve_by_system, compare=False)

    def __post_init__(self) -> None:
        _parse_allow(self.allow)

    def check_literal(self, url: str) -> Target:
        """Judge what can be judged without a resolver; raise EgressDenied or return the target."""
        target = parse_target(url)
        if not _permits_host(_parse_allow(self.allow), target):
            self._check_port(target)
            if not isinstance(target.host, str):
                self._check_address(target.host, target)
        return target

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Resolve once and judge every address; one bad address among good ones refuses them all.

        Raises EgressDenied, or OSError when the name does not resolve.
        """
        target = Target(_parse_host(host), port)
        permitted = _permits_host(_parse_allow(self.allow), target)
        if not permitted:
            self._check_port(target)
        if isinstance(target.host, str):
            answers = await self.resolver(target.host, port)
            addresses = [_parse_answer(answer) for answer in answers]
        else:
            addresses = [target.host]
        if not addresses:
            raise OSError(socket.EAI_NONAME, f"{target.host} has no address")
        if not permitted:
            for address in addresses:
                self._check_address(address, target)
        return addresses

    def _check_port(self, target: Target) -> None:
        if _is_odd(target.port):
            detail = f"{target.host} would be reached on port {target.port}, not one of the web's"
            raise EgressDenied("port", detail, str(target))

    def _check_address(self, address: Address, target: Target) -> None:
        """Judge an address and the IPv4 address that it may carry; neither may be denied."""
        networks = _parse_allow(self.allow).networks
        for part in (address, carried_ipv4(address)):
            rule = denied_as(part) if part is not None else None
            if part is None or rule is None or _is_allowed(part, rule, networks):
                continue
            # The address of a name is not told: that would make a resolver of the inner network.
            entry = str(part) if target.host in (address, part) else str(target.host)
            detail = f"{target.host} is" if target.host == address else f"{target.host} leads to"
            raise EgressDenied(rule, f"{detail} a {rule} address", entry)


def parse_target(url: str) -> Target:
    """Read scheme, host and port of a URL as strictly as a browser; raise EgressDenied."""
    parts = _split(url)
    if parts.scheme not in _SCHEME_PORTS:
        raise EgressDenied("scheme", f"{parts.scheme or 'no scheme'!r} is not http or https")
    if "@" in parts.netloc:
        raise EgressDenied("userinfo", "the URL carries a user name or password")
    if not parts.hostname:
        raise EgressDenied("host", "the URL names no host")
    return Target(_parse_host(_host_of(parts.netloc)), _port_of(parts))


def _split(url: str) -> SplitResult:
    # urlsplit drops tabs and line ends and reads a backslash as a plain character; browsers read it
    # as a slash. What two parsers may read as two hosts is refused instead of being guessed at.
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise EgressDenied("host", "the URL holds a blank, a control character or a backslash")
    try:
        return urlsplit(url)
    except ValueError as error:
        raise EgressDenied("host", f"the URL cannot be read: {error}") from None


def _host_of(netloc: str) -> str:
    if netloc.startswith("["):
        return netloc.partition("]")[0] + "]"
    return netloc.partition(":")[0]


def _port_of(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return _SCHEME_PORTS[parts.scheme]
    if not 0 < port <= _PORT_MAX:
        raise EgressDenied("port", f"the port of {parts.netloc} is not between 1 and {_PORT_MAX}")
    return port


def _parse_host(host: str) -> Address | str:
    try:
        return parse_host(host)
    except HostSyntaxError as error:
        raise EgressDenied(error.rule, str(error)) from None


def _parse_answer(answer: str) -> Address:
    # getaddrinfo writes a link-local answer with its zone, which no rule lets through anyway.
    return unmap(ip_address(answer.partition("%")[0]))


@dataclass(frozen=True, slots=True)
class _Allowed:
    networks: tuple[Network, ...]
    hosts: frozenset[str]
    targets: frozenset[Target]


@lru_cache(maxsize=256)
def _parse_allow(entries: tuple[str, ...]) -> _Allowed:
    """Sort the entries by what they permit; a bad one raises ValueError with the fix."""
    networks: list[Network] = []
    hosts: set[str] = set()
    targets: set[Target] = set()
    for entry in entries:
        permitted = _parse_entry(entry)
        if isinstance(permitted, str):
            hosts.add(permitted)
        elif isinstance(permitted, Target):
            targets.add(permitted)
        else:
            networks.append(permitted)
    return _Allowed(tuple(networks), frozenset(hosts), frozenset(targets))


def _parse_entry(entry: str) -> Network | Target | str:
    host, colon, port = entry.rpartition(":")
    try:
        if "/" in entry:
            return ip_network(entry)
        if colon and port.isdecimal() and (":" not in host or host.startswith("[")):
            return Target(parse_host(host), int(port))
        parsed = parse_host(entry)
    except ValueError as error:
        message = (
            f"EGRESS_ALLOW entry {entry!r} is not understood ({error}): "
            "write a network (10.0.0.0/8), a host, or host:port"
        )
        raise ValueError(message) from None
    return parsed if isinstance(parsed, str) else ip_network(parsed)


def _permits_host(allowed: _Allowed, target: Target) -> bool:
    """Tell whether an entry names this very host and port, or this name on any web port."""
    if target in allowed.targets:
        return True
    return target.host in allowed.hosts and not _is_odd(target.port)


def _is_odd(port: int) -> bool:
    privileged = port < _PRIVILEGED and port not in _SCHEME_PORTS.values()
    return privileged or port in _ODD_PORTS


def _is_allowed(address: Address, rule: str, networks: tuple[Network, ...]) -> bool:
    exact = rule == "metadata"
    return any(
        address in network and (not exact or network.num_addresses == 1) for network in networks
    )
