"""The allow-list of the egress guard: what an entry permits, and which entry permitted something.

Reads entries and answers questions; what needs an entry at all, runtime/egress_policy.py decides.
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network

from runtime.addresses import Address, Network, parse_host
from runtime.egress_target import PORT_MAX, Target

_WILDCARD = "*."


@dataclass(frozen=True, slots=True)
class AllowList:
    """Entries by what they permit; each value is the entry as it was written."""

    networks: dict[Network, str]
    hosts: dict[str, str]
    domains: dict[str, str]
    targets: dict[Target, str]

    def naming(self, target: Target) -> str | None:
        """The entry that names this very host and port, or this name on any port of the web."""
        if target in self.targets:
            return self.targets[target]
        if target.is_odd or not isinstance(target.host, str):
            return None
        host = target.host
        inside = (entry for domain, entry in self.domains.items() if host.endswith(f".{domain}"))
        return self.hosts.get(host) or next(inside, None)

    def covering(self, address: Address, *, exactly: bool) -> str | None:
        """The network's entry that the address lies in; `exactly`: that is this one address."""
        for network, entry in self.networks.items():
            if address in network and (not exactly or network.num_addresses == 1):
                return entry
        return None


@lru_cache(maxsize=256)
def parse_allow(entries: tuple[str, ...]) -> AllowList:
    """Sort the entries by what they permit; a bad one raises ValueError with the fix."""
    found = AllowList({}, {}, {}, {})
    for entry in entries:
        try:
            _add(found, entry)
        except ValueError as error:
            message = (
                f"EGRESS_ALLOW entry {entry!r} is not understood ({error}): "
                "write a network (10.0.0.0/8), a host, *.domain, or host:port"
            )
            raise ValueError(message) from None
    return found


def _add(found: AllowList, entry: str) -> None:
    host, colon, port = entry.rpartition(":")
    if "/" in entry:
        found.networks[ip_network(entry)] = entry
    elif entry.startswith(_WILDCARD):
        found.domains[_name(entry.removeprefix(_WILDCARD))] = entry
    elif colon and port.isascii() and port.isdecimal() and (":" not in host or host[0] == "["):
        found.targets[Target(parse_host(host), _port(port))] = entry
    else:
        parsed = parse_host(entry)
        if isinstance(parsed, str):
            found.hosts[parsed] = entry
        else:
            found.networks[ip_network(parsed)] = entry


def _name(host: str) -> str:
    parsed = parse_host(host)
    if not isinstance(parsed, str) or host.startswith("."):
        raise ValueError(f"{host} is no domain")
    return parsed


def _port(text: str) -> int:
    port = int(text[:6])
    if not 0 < port <= PORT_MAX:
        raise ValueError(f"there is no port {text}")
    return port
