"""A whole crawl: one coordinator, a few visitors, pages handed over as they come.

The coordinator alone owns the frontier, the counts and the caller's callbacks, which are therefore
never called concurrently. What is in hand at once is bounded by the number of visitors.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import anyio
import httpx

from crawl import urls
from crawl.errors import PageError, Throttled
from crawl.extractor import Extractor
from crawl.fetch import Admit, fetch
from crawl.frontier import Entry, Frontier
from crawl.limits import CrawlLimits
from crawl.pages import (
    BLOCKING,
    CrawlReport,
    CrawlRequest,
    Failure,
    Outcome,
    Page,
    Reason,
    Validators,
)
from crawl.robots import Robots
from crawl.visit import Known, Visited, Visitor
from runtime.groups import single_error

type OnPage = Callable[[Page], Awaitable[None]]
type OnUnchanged = Callable[[str, Validators], Awaitable[None]]
type OnProgress = Callable[[int, int, str], Awaitable[None]]

_BACKOFF_S = 1.0
_PASSING = frozenset({Reason.THROTTLED, Reason.BROKEN, Reason.PROTOCOL})


async def crawl_site(
    request: CrawlRequest,
    *,
    client: httpx.AsyncClient,
    extractor: Extractor,
    known: Known,
    on_page: OnPage,
    on_progress: OnProgress,
    on_unchanged: OnUnchanged | None = None,
    limits: CrawlLimits | None = None,
    robots: Robots | None = None,
) -> CrawlReport:
    """Crawl, handing each page with new content to `on_page` as it comes; returns the counts.

    `known` returns what is kept of a URL's last visit, for several URLs at a time; `on_unchanged`
    gets what to keep instead. `on_progress` gets pages done, pages known of, and the URL just done.
    The `on_` callbacks are called one at a time; what they raise ends the crawl and is raised as it
    is. Raises ValueError for patterns that are too many or too long. Nothing is left running, also
    when cancelled.
    """
    limits = limits or CrawlLimits()
    robots = robots or Robots(client, limits)
    crawl = _Crawl(request, limits, robots, (on_page, on_unchanged, on_progress))
    with single_error():
        await crawl.run(client, extractor, known)
    return crawl.report()


class _Crawl:
    """The state of one crawl while it goes on."""

    def __init__(
        self,
        request: CrawlRequest,
        limits: CrawlLimits,
        robots: Robots,
        callbacks: tuple[OnPage, OnUnchanged | None, OnProgress],
    ) -> None:
        self._request = request
        self._limits = limits
        self._robots = robots
        self._on_page, self._on_unchanged, self._on_progress = callbacks
        self._frontier = Frontier(request, limits)
        self._capacity = max(1, min(limits.fetchers, request.max_pages))
        self._to_visit, self._entries = anyio.create_memory_object_stream[Entry](self._capacity)
        # None says only that a host is free again.
        self._news, self._heard = anyio.create_memory_object_stream[Visited | None](self._capacity)
        self._in_hand = 0
        self._counts: Counter[Outcome] = Counter()
        self._failures: list[Failure] = []
        self._failures_omitted = 0
        self._duplicates = 0
        self._contents: set[tuple[str, str]] = set()

    async def run(self, client: httpx.AsyncClient, extractor: Extractor, known: Known) -> None:
        """Visit until nothing is left; the streams end with it."""
        visitor = Visitor(
            client, extractor, self._limits, known, admit=self._admit_for, freed=self._freed
        )
        with self._to_visit, self._entries, self._news, self._heard:
            for url in self._request.urls:
                self._start_at(url)
            if self._request.sitemap:
                await self._list_sitemaps(client, extractor)
            async with anyio.create_task_group() as group:
                for _ in range(self._capacity):
                    group.start_soon(self._work, visitor)
                await self._coordinate()
                self._to_visit.close()

    def report(self) -> CrawlReport:
        """Sum up."""
        return CrawlReport(
            pages={outcome: self._counts[outcome] for outcome in Outcome},
            failures=tuple(self._failures),
            failures_omitted=self._failures_omitted,
            duplicates=self._duplicates,
        )

    def _start_at(self, url: str) -> None:
        start = urls.canonical(url)
        if start is None:
            self._fail(url, PageError(Reason.BAD_URL, "it is not the URL of a page of the web"))
        else:
            self._frontier.add_start(start)

    async def _coordinate(self) -> None:
        while self._hand_out() or self._in_hand:
            visited = None
            idle = self._in_hand < self._capacity
            wait_s = self._frontier.wait_s(anyio.current_time()) if idle else None
            with anyio.move_on_after(wait_s):
                visited = await self._heard.receive()
            if visited is not None:
                self._in_hand -= 1
                await self._settle(visited)

    def _hand_out(self) -> bool:
        """Give the visitors what may be visited now; tell whether anything is left to wait for."""
        now = anyio.current_time()
        while self._in_hand < self._capacity and (entry := self._frontier.take(now)):
            self._to_visit.send_nowait(entry)
            self._in_hand += 1
        return self._frontier.wait_s(now) is not None

    async def _work(self, visitor: Visitor) -> None:
        async for entry in self._entries:
            needs_links = self._frontier.needs_links(entry)
            await self._news.send(await visitor.visit(entry, needs_links=needs_links))

    async def _freed(self, entry: Entry) -> None:
        self._frontier.release(entry.url)
        await self._news.send(None)

    def _admit_for(self, entry: Entry) -> Admit:
        """Build the judge of an entry's hops. A start may lead elsewhere: its user asked for it."""

        async def admit(hop: str) -> None:
            if not entry.is_start and not self._frontier.in_scope(hop):
                raise PageError(Reason.SCOPE, f"redirected out of the crawl's scope to {hop}")
            rules = await self._robots.rules(hop)
            self._frontier.set_delay(hop, rules.crawl_delay_s)
            rules.check(hop)

        return admit

    async def _settle(self, visited: Visited) -> None:
        """Count a visit, hand its page over, follow its links."""
        entry, error = visited.entry, visited.error
        if error is not None and self._retry(entry, error):
            return
        if visited.final_url != entry.url:
            if not self._frontier.claim(visited.final_url):
                self._duplicates += 1
                return
            if entry.is_start:
                self._frontier.add_area(visited.final_url)
        self._frontier.add_links(visited.links, entry.depth + 1)
        if error is not None:
            self._fail(entry.url, error)
            if error.reason in BLOCKING:
                self._frontier.forget_visit()
        elif visited.unchanged_as is not None:
            self._counts[Outcome.UNCHANGED] += 1
            if self._on_unchanged is not None:
                await self._on_unchanged(entry.url, visited.unchanged_as)
        elif visited.page is not None:
            await self._hand_over(visited.page, visited.canonical)
        await self._on_progress(self._counts.total(), self._frontier.total, entry.url)

    async def _hand_over(self, page: Page, canonical: str | None) -> None:
        # The same content under the same canonical URL is the same page. The canonical URL alone is
        # no proof: on many sites every page names the home page.
        identity = (canonical or page.final_url, page.content_hash)
        if identity in self._contents:
            self._duplicates += 1
            return
        self._contents.add(identity)
        await self._on_page(page)
        self._counts[Outcome.FETCHED] += 1

    def _retry(self, entry: Entry, error: PageError) -> bool:
        """Put a visit that failed for a passing reason back, its host left alone for a while."""
        if error.reason not in _PASSING or entry.tries >= self._limits.retries:
            return False
        wait_s = _BACKOFF_S * 2**entry.tries
        if isinstance(error, Throttled) and error.retry_after_s is not None:
            wait_s = max(error.retry_after_s, self._limits.host_delay_s)
        if wait_s > self._limits.retry_after_max_s:
            return False
        self._frontier.retry(entry, anyio.current_time() + wait_s)
        return True

    def _fail(self, url: str, error: PageError) -> None:
        failure = error.as_failure(url)
        self._counts[failure.outcome] += 1
        self._note(failure)

    def _note(self, failure: Failure) -> None:
        if len(self._failures) < self._limits.failures_reported:
            self._failures.append(failure)
        else:
            self._failures_omitted += 1

    async def _list_sitemaps(self, client: httpx.AsyncClient, extractor: Extractor) -> None:
        """Add the pages of the starts' sitemaps: those that robots.txt names, else /sitemap.xml."""
        queue: list[str] = []
        for origin in dict.fromkeys(urls.origin(url) for url in self._frontier.starts):
            rules = await self._robots.rules(f"{origin}/")
            queue += rules.sitemaps or (f"{origin}/sitemap.xml",)
        seen: set[str] = set()
        while queue and len(seen) < self._limits.sitemaps:
            url = queue.pop(0)
            if url not in seen:
                seen.add(url)
                queue += await self._read_sitemap(url, client, extractor)

    async def _read_sitemap(
        self, url: str, client: httpx.AsyncClient, extractor: Extractor
    ) -> tuple[str, ...]:
        """Add its pages and return the sitemaps that it lists; one that fails is noted."""
        try:
            fetched = await fetch(
                client, url, limits=self._limits, admit=self._robots.check, any_type=True
            )
            found = await extractor.sitemap(fetched.body or b"", url=fetched.final_url)
        except PageError as error:
            # Nobody promised the sitemap that we only guessed.
            if error.status is None or urlsplit(url).path != "/sitemap.xml":
                self._note(error.as_failure(url))
            return ()
        self._frontier.add_listed(found.pages)
        return found.sitemaps
