"""Where a URL leads, read as strictly as a browser does, and the refusal that all rules share.

Knows no allow-list and resolves nothing: runtime/egress_policy.py judges what is read here.
"""

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import override
from urllib.parse import SplitResult, urlsplit

from runtime.addresses import Address, HostSyntaxError, parse_host

PORT_MAX = 65535
_SCHEME_PORTS = {"http": 80, "https": 443}
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
_FIX = (
    "an operator may permit it with the EGRESS_ALLOW entry {entry!r}, "
    "or for one tenant by `xnai egress allow`"
)
_NO_FIX = "no EGRESS_ALLOW entry permits it"


class EgressDenied(Exception):
    """The guard refused: by `rule`; `entry` is the EGRESS_ALLOW entry that would permit it."""

    def __init__(self, rule: str, detail: str, entry: str | None = None) -> None:
        fix = _FIX.format(entry=entry) if entry else _NO_FIX
        super().__init__(f"{detail} (rule {rule!r}); {fix}")
        self.rule = rule
        self.entry = entry


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads: its host normalised, as an address when it is written as one."""

    host: Address | str
    port: int

    @property
    def is_odd(self) -> bool:
        """Tell whether the port is that of a service which is not the web's."""
        privileged = self.port < _PRIVILEGED and self.port not in _SCHEME_PORTS.values()
        return privileged or self.port in _ODD_PORTS

    @override
    def __str__(self) -> str:
        if isinstance(self.host, IPv6Address):
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


def parse_target(url: str) -> Target:
    """Read scheme, host and port of a URL as strictly as a browser; raise EgressDenied."""
    parts = _split(url)
    if parts.scheme not in _SCHEME_PORTS:
        raise EgressDenied("scheme", f"{parts.scheme or 'no scheme'!r} is not http or https")
    if "@" in parts.netloc:
        raise EgressDenied("userinfo", "the URL carries a user name or password")
    if not parts.hostname:
        raise EgressDenied("host", "the URL names no host")
    return Target(target_host(_host_of(parts.netloc)), _port_of(parts))


def target_host(host: str) -> Address | str:
    """Read a host, in any spelling, as an address or a plain name; raise EgressDenied."""
    try:
        return parse_host(host)
    except HostSyntaxError as error:
        raise EgressDenied(error.rule, str(error)) from None


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
    if "[" not in netloc and "]" not in netloc:
        return netloc.partition(":")[0]
    host, _, rest = netloc.partition("]")
    if not host.startswith("[") or (rest and not rest.startswith(":")):
        raise EgressDenied("host", f"{netloc!r} is not an IPv6 address and a port")
    return f"{host}]"


def _port_of(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None:
        return _SCHEME_PORTS[parts.scheme]
    if not 0 < port <= PORT_MAX:
        raise EgressDenied("port", f"the port of {parts.netloc} is not between 1 and {PORT_MAX}")
    return port
