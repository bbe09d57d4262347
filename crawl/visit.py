"""One visit: a URL of the frontier becomes a page, an unchanged page, or a reason why not."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import unquote, urlsplit

import httpx

from crawl.errors import PageError
from crawl.extractor import Extractor
from crawl.fetch import Admit, Fetched, fetch
from crawl.frontier import Entry
from crawl.limits import CrawlLimits
from crawl.pages import Extracted, Page, Reason, Validators

type Known = Callable[[str], Awaitable[Validators | None]]
type Freed = Callable[[Entry], Awaitable[None]]

_NO_FOLLOW = ("nofollow", "none")
_NO_INDEX = ("noindex", "none")


@dataclass(frozen=True, slots=True)
class Visited:
    """How a visit ended: `page` when there is content, changed or not, `error` when there is none.

    `unchanged_as` is set when the caller has this content already: what asks for it from now on.
    """

    entry: Entry
    final_url: str
    page: Page | None = None
    canonical: str | None = None
    links: tuple[str, ...] = ()
    unchanged_as: Validators | None = None
    error: PageError | None = None


@dataclass(frozen=True, slots=True)
class Visitor:
    """What every visit of a crawl needs."""

    client: httpx.AsyncClient
    extractor: Extractor
    limits: CrawlLimits
    known: Known
    admit: Callable[[Entry], Admit]
    freed: Freed

    async def visit(self, entry: Entry, *, needs_links: bool) -> Visited:
        """Fetch and extract; says `freed` as soon as the host is no longer being asked."""
        known = await self.known(entry.url)
        try:
            fetched = await self._fetch(entry, known, needs_links=needs_links)
            if fetched.body is None:
                return _not_modified(entry, fetched, known or Validators())
            found = await self._extract(fetched)
        except PageError as error:
            return Visited(entry, entry.url, error=error)
        return _visited(entry, fetched, found, known)

    async def _fetch(self, entry: Entry, known: Validators | None, *, needs_links: bool) -> Fetched:
        # A 304 brings no links: ask for the whole page unless they are known from its last visit.
        conditional = known if known and (not needs_links or known.links is not None) else None
        try:
            return await fetch(
                self.client,
                entry.url,
                limits=self.limits,
                admit=self.admit(entry),
                validators=conditional,
            )
        finally:
            await self.freed(entry)

    async def _extract(self, fetched: Fetched) -> Extracted:
        body = fetched.body or b""
        if fetched.is_html:
            return await self.extractor.html(body, url=fetched.final_url, charset=fetched.charset)
        name = PurePath(unquote(urlsplit(fetched.final_url).path)).name
        return await self.extractor.file(
            body, name=name, media_type=fetched.media_type, charset=fetched.charset
        )


def _not_modified(entry: Entry, fetched: Fetched, known: Validators) -> Visited:
    validators = Validators(
        etag=fetched.etag or known.etag,
        last_modified=fetched.last_modified or known.last_modified,
        content_hash=known.content_hash,
        links=known.links,
    )
    return Visited(entry, fetched.final_url, links=known.links or (), unchanged_as=validators)


def _visited(entry: Entry, fetched: Fetched, found: Extracted, known: Validators | None) -> Visited:
    links = () if _says(fetched, _NO_FOLLOW) else found.links
    noindex = found.noindex or _says(fetched, _NO_INDEX)
    page = Page(
        url=entry.url,
        final_url=fetched.final_url,
        status=fetched.status,
        title=found.title,
        text=found.text,
        headings=found.headings,
        language=found.language,
        content_hash=found.content_hash,
        etag=fetched.etag,
        last_modified=fetched.last_modified,
        fetched_at=fetched.fetched_at,
        size_bytes=len(fetched.body or b""),
        links=links,
    )
    same = known is not None and known.content_hash == found.content_hash
    validators = Validators(fetched.etag, fetched.last_modified, found.content_hash, links)
    error = None
    if noindex:
        error = PageError(Reason.NOINDEX, "the page asks not to be indexed", status=fetched.status)
    elif not found.text:
        error = PageError(Reason.EMPTY, "the page has links but no text", status=fetched.status)
    return Visited(
        entry,
        fetched.final_url,
        page=None if error else page,
        canonical=found.canonical,
        links=links,
        unchanged_as=validators if same and error is None else None,
        error=error,
    )


def _says(fetched: Fetched, rules: tuple[str, ...]) -> bool:
    """Read X-Robots-Tag; what it says to one bot by name is taken as said to all."""
    return any(rule in fetched.robots_tag for rule in rules)
