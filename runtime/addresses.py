"""What kind of address a host is, whatever its spelling, by IANA's special-purpose registries.

Knows nothing of policies or allow-lists (runtime/egress.py), resolves nothing, opens nothing.
"""

import re
from collections.abc import Iterable
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from urllib.parse import unquote_to_bytes

import idna

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+", re.ASCII)
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.ASCII)
_HOST_NAME_MAX = 253


def _networks(rule: str, *networks: str) -> Iterable[tuple[str, Network]]:
    return ((rule, ip_network(network)) for network in networks)


# Read in this order, so the narrow rule is named before the wide one that contains it.
_DENIED: tuple[tuple[str, Network], ...] = (
    # Cloud metadata services. Some lie in public or otherwise private ranges.
    *_networks("metadata", "169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200"),
    *_networks("metadata", "168.63.129.16", "192.0.0.192", "169.254.169.123", "169.254.169.253"),
    *_networks("metadata", "169.254.169.250", "169.254.42.42", "169.254.0.23", "fd00:42::42"),
    *_networks("metadata", "fd00:ec2::254", "fd00:ec2::253", "fd00:ec2::123", "fd00:ec2::23"),
    *_networks("metadata", "fd20:ce::254", "fe80::a9fe:a9fe"),
    *_networks("loopback", "127.0.0.0/8", "::1"),
    *_networks("unspecified", "0.0.0.0/8", "::"),
    *_networks("private", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
    *_networks("link-local", "169.254.0.0/16", "fe80::/10", "fec0::/10"),
    *_networks("cgnat", "100.64.0.0/10"),
    *_networks("multicast", "224.0.0.0/4", "ff00::/8"),
    *_networks("reserved", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
    *_networks("reserved", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
    # IPv6 that carries an IPv4 address: the gateway at its other end is nobody's that we know.
    *_networks("tunnel", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"),
    *_networks("tunnel", "2002::/16", "2001::/32"),
    *_networks("reserved", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16"),
)
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE = IPv6Network("::/96")
# RFC 6761, 6762, 8375, ICANN's .internal, and what ICANN holds back since networks inside use it.
_LOCALHOST = (".localhost", ".localdomain")
_LOCAL = (
    *(".local", ".internal", ".home.arpa", ".intranet", ".private", ".corp", ".home", ".lan"),
    *(".test", ".invalid"),
)
_ISATAP_IDENTIFIERS = (0x0000_5EFE, 0x0200_5EFE)


class HostSyntaxError(ValueError):
    """The host is neither a name nor an address in any spelling; `rule` says what is wrong."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule = rule


def parse_host(host: str) -> Address | str:
    """Read a URL's host as WHATWG's host parser does: an address in any spelling, or a plain name.

    Percent-encoding, full-width digits, IDN, case, one trailing dot, and octal, hexadecimal,
    decimal and shortened IPv4 are normalised. Raises HostSyntaxError.
    """
    if host.startswith("[") and host.endswith("]"):
        return _parse_ipv6(host[1:-1])
    if ":" in host:
        return _parse_ipv6(host)
    name = _ascii_name(host)
    last = name.rpartition(".")[2]
    if _NUMBER.fullmatch(last):
        return _parse_ipv4(name)
    if len(name) > _HOST_NAME_MAX or not _HOST_NAME.fullmatch(name):
        raise HostSyntaxError("host", f"{host!r} is not a host name")
    return name


def local_name(name: str) -> str | None:
    """Name the rule that keeps this name inside: it has no dot, or a suffix of local use."""
    if name == "localhost" or name.endswith(_LOCALHOST):
        return "loopback"
    return "local-name" if "." not in name or name.endswith(_LOCAL) else None


def denied_as(address: Address) -> str | None:
    """Name the rule that keeps this address off the public internet, or None for a public one."""
    for rule, network in _DENIED:
        if address in network:
            return rule
    if isinstance(address, IPv6Address):
        return None if address in _GLOBAL_IPV6 else "reserved"
    return None if address.is_global else "reserved"


def carried_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that a 6to4, Teredo, NAT64, ISATAP or translated one may carry.

    Several for NAT64's local-use prefix: its gateway alone knows the length it splits them by.
    """
    if isinstance(address, IPv4Address):
        return ()
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64_LOCAL:
        return _rfc6052(int(address))
    suffix = int(address) & 0xFFFF_FFFF
    interface = (int(address) >> 32) & 0xFFFF_FFFF
    carries = address in _NAT64 or address in _TRANSLATED or interface in _ISATAP_IDENTIFIERS
    if carries or (address in _COMPATIBLE and suffix > 1):
        return (IPv4Address(suffix),)
    return ()


def unmap(address: Address) -> Address:
    """Write an IPv4-mapped IPv6 address as the IPv4 address that it only spells differently."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _rfc6052(value: int) -> tuple[IPv4Address, ...]:
    """Read RFC 6052 §2.2's layouts of /48, /56, /64 (split around bits 64–71) and /96."""
    around = (value >> 64) << 56 | value & ((1 << 56) - 1)
    read = (around >> shift & 0xFFFF_FFFF for shift in (40, 32, 24))
    # What a layout reads as 0.x.y.z is the padding of another one.
    found = (IPv4Address(carried) for carried in (*read, value & 0xFFFF_FFFF) if carried >> 24)
    return tuple(dict.fromkeys(found))


def _parse_ipv6(text: str) -> Address:
    if "%" in text:
        raise HostSyntaxError("zone-id", f"[{text}] names a zone, which only this machine knows")
    try:
        return unmap(IPv6Address(text))
    except AddressValueError as error:
        raise HostSyntaxError("host", f"[{text}] is not an IPv6 address: {error}") from None


def _ascii_name(host: str) -> str:
    """Decode percent-encoding, apply UTS 46, drop one trailing dot."""
    try:
        text = unquote_to_bytes(host).decode()
        if not text.isascii():
            text = idna.encode(text, uts46=True, transitional=False).decode()
        if "xn--" in text.lower():
            idna.decode(text.lower())
    except (UnicodeError, idna.IDNAError):
        # idna refuses what UTS 46 maps to an address (①②⑦.⓪.⓪.①): map it by hand, and look again.
        text = _remap(host)
    return text.lower().removesuffix(".")


def _remap(host: str) -> str:
    try:
        text = idna.uts46_remap(unquote_to_bytes(host).decode(), std3_rules=True)
    except (UnicodeError, idna.IDNAError) as error:
        raise HostSyntaxError("host", f"{host!r} is not a host name: {error}") from None
    if not text.isascii() or "xn--" in text.lower():
        raise HostSyntaxError("host", f"{host!r} is not a host name")
    return text


def _parse_ipv4(text: str) -> IPv4Address:
    """Read 1–4 numbers of base 8, 10 or 16, the last of which fills the bytes left over."""
    parts = text.split(".")
    try:
        numbers = [_number(part) for part in parts]
        *leading, last = numbers
        if len(parts) > 4 or any(number > 255 for number in leading):
            raise ValueError(text)
        value = sum(number << (24 - 8 * place) for place, number in enumerate(leading))
        if last >= 256 ** (5 - len(parts)):
            raise ValueError(text)
    except ValueError:
        detail = f"{text!r} ends in a number but is not an IPv4 address"
        raise HostSyntaxError("host", detail) from None
    return IPv4Address(value + last)


def _number(part: str) -> int:
    if not _NUMBER.fullmatch(part):
        raise ValueError(part)
    if part[:2] in {"0x", "0X"}:
        return int(part[2:] or "0", 16)
    return int(part, 8) if part.startswith("0") and part != "0" else int(part)
