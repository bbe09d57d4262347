"""Which URL comes next: breadth first, each once, within depth and number, politely to each host.

Plain bookkeeping of one crawl, called by one coordinator: no network, no locks, the clock given.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from crawl import urls
from crawl.limits import CrawlLimits
from crawl.pages import CrawlRequest, Scope
from crawl.patterns import Patterns
from crawl.scope import Area


@dataclass(frozen=True, slots=True)
class Entry:
    """A URL to visit; `depth` counts the links from a start, `tries` the visits that failed."""

    url: str
    depth: int
    tries: int = 0
    is_start: bool = False


@dataclass(slots=True)
class _Host:
    """The queue of one host, and when it may be asked again."""

    waiting: deque[Entry] = field(default_factory=deque)
    asked: int = 0
    asked_at: float = 0.0
    ready_at: float = 0.0
    delay_s: float | None = None  # unknown until its robots.txt is read

    def is_free(self, connections: int) -> bool:
        # Alone until its rules are known: a second request might already be too soon.
        return bool(self.waiting) and self.asked < (1 if self.delay_s is None else connections)


class Frontier:
    """The URLs of one crawl: found, waiting, taken."""

    def __init__(self, request: CrawlRequest, limits: CrawlLimits) -> None:
        self._request = request
        self._limits = limits
        self._patterns = Patterns.compile(request.include, request.exclude)
        # A sitemap lists more pages than the one that it was asked for.
        listed = request.sitemap and request.scope == "page"
        self._scope: Scope = "host" if listed else request.scope
        self._areas: list[Area] = []
        self._hosts: dict[str, _Host] = {}
        self._found: set[str] = set()
        self._taken: set[str] = set()
        self._waiting = 0
        self._visits = 0

    @property
    def total(self) -> int:
        """How many pages the crawl will have visited, as far as is known now."""
        return min(self._visits + self._waiting, self._request.max_pages)

    @property
    def starts(self) -> tuple[str, ...]:
        """The canonical start URLs."""
        return tuple(area.start for area in self._areas)

    def add_start(self, url: str) -> None:
        """Add a start URL: it opens an area, and no pattern applies to it."""
        self._areas.append(Area(self._scope, url))
        self._add(Entry(url, 0, is_start=True))

    def add_area(self, url: str) -> None:
        """Open the area of what a start URL redirected to."""
        self._areas.append(Area(self._scope, url))

    def add_links(self, links: tuple[str, ...], depth: int) -> None:
        """Add the links found at `depth - 1`: those in scope, wanted, and not too deep."""
        if depth > self._request.max_depth:
            return
        for link in links:
            if link not in self._found and self.in_scope(link) and self._patterns.wants(link):
                self._add(Entry(link, depth))

    def add_listed(self, pages: tuple[str, ...]) -> None:
        """Add the pages that a sitemap lists, as if they were linked from a start, at no depth."""
        for page in pages:
            if page not in self._found and self.in_scope(page) and self._patterns.wants(page):
                self._add(Entry(page, 0))

    def in_scope(self, url: str) -> bool:
        """Tell whether the URL lies in an area that the crawl may enter."""
        return any(area.holds(url) for area in self._areas)

    def needs_links(self, entry: Entry) -> bool:
        """Tell whether links found on this page could still be followed."""
        return self._scope != "page" and entry.depth < self._request.max_depth

    def take(self, now: float) -> Entry | None:
        """Take the next URL whose host may be asked now, or None; say `release` when it is done."""
        if self._visits >= self._request.max_pages:
            return None
        ready = [
            host
            for host in self._hosts.values()
            if host.is_free(self._limits.host_connections) and host.ready_at <= now
        ]
        # Breadth first across hosts; among equals the host that has waited longest.
        best = min(ready, key=lambda host: (host.waiting[0].depth, host.ready_at), default=None)
        return None if best is None else self._take_from(best, now)

    def wait_s(self, now: float) -> float | None:
        """Return for how long nothing can be taken unless something is released; None for ever."""
        if self._visits >= self._request.max_pages:
            return None
        moments = [
            host.ready_at
            for host in self._hosts.values()
            if host.is_free(self._limits.host_connections)
        ]
        return max(0.0, min(moments) - now) if moments else None

    def claim(self, url: str) -> bool:
        """Reserve the URL that a redirect or a canonical link led to; False if it was visited."""
        if url in self._taken:
            return False
        self._found.add(url)
        self._taken.add(url)
        return True

    def release(self, url: str) -> None:
        """Say that the host of a taken URL is no longer being asked."""
        self._host(url).asked -= 1

    def set_delay(self, url: str, delay_s: float) -> None:
        """Keep the pause between two requests that the host asks for in robots.txt, or ours."""
        host = self._host(url)
        wish_s = min(delay_s, self._limits.crawl_delay_max_s)
        host.delay_s = max(wish_s, self._limits.host_delay_s)
        host.ready_at = max(host.ready_at, host.asked_at + host.delay_s)

    def retry(self, entry: Entry, not_before: float) -> None:
        """Visit it once more, and leave its host alone until then."""
        host = self._host(entry.url)
        host.ready_at = max(host.ready_at, not_before)
        host.waiting.appendleft(replace(entry, tries=entry.tries + 1))
        self._waiting += 1
        self._visits -= 1
        self._taken.discard(entry.url)

    def forget_visit(self) -> None:
        """Do not count the last visit against the limit of pages: it gave none and cost nothing."""
        self._visits -= 1

    def _add(self, entry: Entry) -> None:
        if entry.url in self._found or len(self._found) >= self._limits.urls_seen:
            return
        self._found.add(entry.url)
        self._host(entry.url).waiting.append(entry)
        self._waiting += 1

    def _take_from(self, host: _Host, now: float) -> Entry | None:
        while host.waiting:
            entry = host.waiting.popleft()
            self._waiting -= 1
            if entry.url not in self._taken:
                self._taken.add(entry.url)
                self._visits += 1
                host.asked += 1
                host.asked_at = now
                host.ready_at = now + (host.delay_s or self._limits.host_delay_s)
                return entry
        return self.take(now)

    def _host(self, url: str) -> _Host:
        return self._hosts.setdefault(urls.host(url), _Host())
