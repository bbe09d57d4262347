"""robots.txt by RFC 9309: fetched once an origin, kept for a while, obeyed on every hop.

No answer is a no: what answers 5xx or 429, or too slowly, is not crawled; 4xx permits everything.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import anyio
import httpx
from protego import Protego

from crawl import urls
from crawl.body import read_body
from crawl.errors import PageError
from crawl.fetch import opened
from crawl.limits import CrawlLimits
from crawl.pages import Reason

_REDIRECTS_MAX = 5  # RFC 9309 §2.3.1.2
_FAILURE_AGE_S = 60.0
_SITEMAPS_MAX = 50
_DOWN = frozenset({Reason.UNREACHABLE, Reason.CONNECT_TIMEOUT, Reason.EGRESS, Reason.BAD_URL})


@dataclass(frozen=True, slots=True)
class Rules:
    """What one origin's robots.txt says to us; `refusal` when there is none that could be read."""

    agent: str
    parsed: Protego | None = None
    refusal: PageError | None = None

    def check(self, url: str) -> None:
        """Raise PageError when the URL must not be fetched."""
        if self.refusal is not None:
            refusal = self.refusal
            raise PageError(refusal.reason, refusal.detail, status=refusal.status)
        if self.parsed is not None and not self.parsed.can_fetch(url, self.agent):
            raise PageError(Reason.ROBOTS, f"robots.txt forbids {self.agent} to fetch it")

    @property
    def crawl_delay_s(self) -> float:
        """The pause that the origin asks for, 0 if it asks for none."""
        return (self.parsed.crawl_delay(self.agent) or 0.0) if self.parsed else 0.0

    @property
    def sitemaps(self) -> tuple[str, ...]:
        """The sitemaps that it names, in canonical spelling."""
        if self.parsed is None:
            return ()
        found = (urls.canonical(url) for url in self.parsed.sitemaps)
        return tuple(dict.fromkeys(url for url in found if url is not None))[:_SITEMAPS_MAX]


@dataclass(slots=True)
class _Entry:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    rules: Rules | None = None
    expires_at: float = 0.0


class Robots:
    """The rules of the origins visited lately; crawls of one process may share it."""

    def __init__(self, client: httpx.AsyncClient, limits: CrawlLimits | None = None) -> None:
        self._client = client
        self._limits = limits or CrawlLimits()
        self._agent = client.headers.get("user-agent", "xnai").partition("/")[0]
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def check(self, url: str) -> None:
        """Raise PageError when the URL's origin forbids it, is down, or does not say."""
        (await self.rules(url)).check(url)

    async def rules(self, url: str) -> Rules:
        """Return the rules of the URL's origin, fetched once however many ask at the same time."""
        entry = self._entry(urls.origin(url))
        async with entry.lock:
            if entry.rules is None or anyio.current_time() >= entry.expires_at:
                entry.rules = await self._fetch(urls.origin(url))
                failed = entry.rules.refusal is not None
                age_s = _FAILURE_AGE_S if failed else self._limits.robots_age_s
                entry.expires_at = anyio.current_time() + age_s
            return entry.rules

    def _entry(self, origin: str) -> _Entry:
        entry = self._entries.setdefault(origin, _Entry())
        self._entries.move_to_end(origin)
        if len(self._entries) > self._limits.robots_cached:
            self._entries.popitem(last=False)
        return entry

    async def _fetch(self, origin: str) -> Rules:
        try:
            with anyio.fail_after(self._limits.page_s):
                text = await self._follow(f"{origin}/robots.txt")
        except PageError as error:
            reason = error.reason if error.reason in _DOWN else Reason.ROBOTS
            return self._refused(reason, error.detail, error.status)
        except TimeoutError:
            return self._refused(Reason.ROBOTS, f"no answer within {self._limits.page_s:g} s")
        return Rules(self._agent, Protego.parse(text) if text else None)

    def _refused(self, reason: Reason, detail: str, status: int | None = None) -> Rules:
        if reason is Reason.ROBOTS:
            detail = f"robots.txt cannot be read, so nothing may be crawled (RFC 9309): {detail}"
        return Rules(self._agent, refusal=PageError(reason, detail, status=status))

    async def _follow(self, url: str) -> str:
        """Return the text of robots.txt, empty when everything is permitted."""
        hop = url
        for _ in range(_REDIRECTS_MAX + 1):
            async with opened(
                self._client, hop, {"Accept": "text/plain,*/*"}, self._limits
            ) as found:
                if found.is_redirect:
                    following = urls.canonical(found.headers["location"], hop)
                    if following is None:
                        return ""
                    hop = following
                    continue
                return await self._read(found)
        # RFC 9309 §2.3.1.2: more redirects than that are "unavailable", which permits.
        return ""

    async def _read(self, response: httpx.Response) -> str:
        status = response.status_code
        if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
            raise PageError(Reason.ROBOTS, f"the server answered {status}", status=status)
        if not response.is_success:
            return ""
        body = await read_body(response, self._limits.robots_bytes, cut=True)
        return body.decode("utf-8-sig", "replace")
