"""What may be reached from this machine: the rules, and the verdict on a URL or a name.

Judges and resolves, but opens no connection: runtime/egress.py connects to what is judged here.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, ip_address

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from runtime.addresses import Address, carried_ipv4, denied_as, local_name, unmap
from runtime.egress_allow import AllowList, parse_allow
from runtime.egress_target import EgressDenied, Target, parse_target, target_host

type Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

RESOLVERS = 64
_THREADS: RunVar[anyio.CapacityLimiter] = RunVar("xnai_resolver_threads")
_ANY_PORT = 9


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


def is_own(address: Address) -> bool:
    """Tell whether the address is this machine's: a datagram to it would come from it.

    Connecting a UDP socket asks the kernel for the route only; nothing is sent.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _ANY_PORT))
            return ip_address(str(probe.getsockname()[0]).partition("%")[0]) == address
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What may be reached: public addresses, and what `allow` (CIDRs, hosts, host:port) adds.

    An entry without a port permits every port that is not a known service's; one with a port
    permits exactly that. A metadata address needs an entry of its own: neither a network nor a name
    that leads there is enough.
    """

    allow: tuple[str, ...] = ()
    resolver: Resolver = field(default=resolve_by_system, compare=False)
    own: Callable[[Address], bool] = field(default=is_own, compare=False)

    def __post_init__(self) -> None:
        parse_allow(self.allow)

    def plus(self, entries: Sequence[str]) -> "EgressPolicy":
        """The policy with more entries, as of a tenant."""
        return replace(self, allow=(*self.allow, *entries)) if entries else self

    @property
    def allowed(self) -> AllowList:
        """The allow-list, read."""
        return parse_allow(self.allow)

    def check_literal(self, url: str) -> Target:
        """Judge what can be judged without a resolver; raise EgressDenied or return the target."""
        target = parse_target(url)
        self.check_target(target)
        return target

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Resolve once and judge every address; one bad address among good ones refuses them all.

        Raises EgressDenied, or OSError when the name does not resolve.
        """
        target = Target(target_host(host), port)
        self.check_target(target)
        addresses = await self.look_up(target)
        for address in addresses:
            self.check_address(address, target)
        return addresses

    def check_target(self, target: Target) -> None:
        """Judge a host and a port before anybody is asked for an address."""
        if self.allowed.naming(target) is None and target.is_odd:
            detail = f"{target.host} would be reached on port {target.port}, not one of the web's"
            raise EgressDenied("port", detail, str(target))
        if not isinstance(target.host, str):
            self.check_address(target.host, target, is_fetched=False)
        elif not self.allowed.networks:
            self._check_name(target)

    async def look_up(self, target: Target) -> list[Address]:
        """The addresses of a target, each once; OSError when there is none. Judges nothing."""
        if not isinstance(target.host, str):
            return [target.host]
        answers = await self.resolver(target.host, target.port)
        if not answers:
            raise OSError(socket.EAI_NONAME, f"{target.host} has no address")
        # getaddrinfo writes a link-local answer with its zone, which no rule lets through anyway.
        return list(dict.fromkeys(unmap(ip_address(text.partition("%")[0])) for text in answers))

    def check_address(self, address: Address, target: Target, *, is_fetched: bool = True) -> None:
        """Judge an address that a target leads to, and the IPv4 addresses that it may carry."""
        for part in (address, *carried_ipv4(address)):
            rule = denied_as(part)
            if rule is not None and self.permits(part, target, rule) is None:
                raise _refusal(rule, part, address, target)
        if denied_as(address) is not None or self.permits(address, target, "own") is not None:
            return
        self._check_name(target)
        if is_fetched and self.own(address):
            raise _refusal("own", address, address, target)

    def permits(self, address: Address, target: Target, rule: str) -> str | None:
        """The entry by which a target may lead to an address that `rule` denies."""
        exactly = rule == "metadata"
        naming = self.allowed.naming(target)
        if naming is not None and not (exactly and isinstance(target.host, str)):
            return naming
        return self.allowed.covering(address, exactly=exactly)

    def _check_name(self, target: Target) -> None:
        rule = local_name(target.host) if isinstance(target.host, str) else None
        if rule is not None and self.allowed.naming(target) is None:
            raise EgressDenied(rule, f"{target.host} is a name of local use", str(target.host))


def _refusal(rule: str, part: Address, address: Address, target: Target) -> EgressDenied:
    # The address of a name is not told: that would make a resolver of the inner network. That of a
    # metadata service is no secret.
    is_told = target.host in (address, part) or rule == "metadata"
    verb = "is" if target.host == address else "leads to"
    entry = str(part) if is_told else str(target.host)
    kind = "an address of this machine itself" if rule == "own" else f"a {rule} address"
    return EgressDenied(rule, f"{target.host} {verb} {kind}", entry)
