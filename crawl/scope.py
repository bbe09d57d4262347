"""How far from its start a crawl may go: the page, its folder, host or registered domain."""

from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from publicsuffixlist import PublicSuffixList

from crawl.pages import Scope
from runtime.addresses import parse_host


@dataclass(frozen=True, slots=True)
class Area:
    """What one start URL opens, under a scope; http and https of a default port are one site."""

    scope: Scope
    start: str

    def holds(self, url: str) -> bool:
        """Tell whether a canonical URL is inside."""
        match self.scope:
            case "page":
                return url == self.start
            case "prefix":
                return _site(url) == _site(self.start) and _under(url, self.start)
            case "host":
                return _site(url) == _site(self.start)
            case "domain":
                return _domain(_host(url)) == _domain(_host(self.start))


def _site(url: str) -> str:
    return urlsplit(url).netloc


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _under(url: str, start: str) -> bool:
    folder = urlsplit(start).path.rpartition("/")[0] + "/"
    return urlsplit(url).path.startswith(folder) or urlsplit(url).path == folder.rstrip("/")


def _domain(host: str) -> str:
    """Return the registered domain; an address or a name without one is its own."""
    if not isinstance(parse_host(host), str):
        return host
    registered: str | None = _suffixes().privatesuffix(host)
    return registered or host


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()
