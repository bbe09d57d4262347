"""URLs in one canonical spelling, so that one page is one URL. Pure functions, no network."""

import re
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from runtime.egress_target import EgressDenied, Target, parse_target

_URL_LENGTH_MAX = 2000
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Marks of campaigns and clicks: they change who is counted, never what is shown.
_TRACKING = re.compile(
    r"utm_\w+|gclid|gbraid|wbraid|fbclid|msclkid|dclid|yclid|mc_cid|mc_eid|igshid|_hsenc|_hsmi",
    re.ASCII | re.IGNORECASE,
)
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_LINE_ENDS = re.compile(r"[\t\r\n]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEPT_IN_PATH = "%/:@!$&'()*+,;=-._~"
_KEPT_IN_QUERY = _KEPT_IN_PATH + "?"


def canonical(url: str, base: str | None = None) -> str | None:
    """Write a URL in its canonical form, joined to `base`; None when it is not a web page's.

    Lower case and punycode host, no default port, no fragment, no tracking parameters, dot segments
    resolved, escapes normalised (RFC 3986 §6.2). The order of the query is kept.
    """
    # As browsers read a link: line ends and tabs vanish, blanks are escaped.
    url = _LINE_ENDS.sub("", url.strip()).replace(" ", "%20")
    if len(url) > _URL_LENGTH_MAX:
        return None
    try:
        joined = urljoin(base, url) if base else url
        target = parse_target(joined)
        parts = urlsplit(joined)
    except (EgressDenied, ValueError):
        return None
    path = _escaped(_without_dots(parts.path or "/"), _KEPT_IN_PATH)
    query = _escaped(_without_tracking(parts.query), _KEPT_IN_QUERY)
    whole = urlunsplit((parts.scheme, _authority(target, parts), path, query, ""))
    return whole if len(whole) <= _URL_LENGTH_MAX else None


def origin(url: str) -> str:
    """Return `scheme://host:port` of a canonical URL: the unit that robots.txt speaks for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host(url: str) -> str:
    """Return the host of a canonical URL, with its port unless it is the default."""
    return urlsplit(url).netloc


def _authority(target: Target, parts: SplitResult) -> str:
    return str(target).removesuffix(f":{_DEFAULT_PORTS[parts.scheme]}")


def _without_dots(path: str) -> str:
    """Resolve `.` and `..` (RFC 3986 §5.2.4), also when they are written as %2e."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        plain = segment.replace("%2e", ".").replace("%2E", ".")
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
    if segments and segments[-1].lower().replace("%2e", ".") in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def _escaped(text: str, kept: str) -> str:
    """Escape what must be, unescape what need not be, write the hexadecimal digits in capitals."""
    return _ESCAPE.sub(_plain_escape, quote(_bare_percent(text), safe=kept))


def _bare_percent(text: str) -> str:
    return re.sub(r"%(?![0-9a-fA-F]{2})", "%25", text)


def _plain_escape(match: re.Match[str]) -> str:
    character = unquote(match[0])
    return character if character in _UNRESERVED else match[0].upper()


def _without_tracking(query: str) -> str:
    fields = query.split("&")
    return "&".join(field for field in fields if not _TRACKING.fullmatch(field.partition("=")[0]))
