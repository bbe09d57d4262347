"""A crawl job: pages become documents as they come, and embed jobs follow while it still runs.

A page and the embed job that it needs are written in fenced transactions. A second run after a
crash finds the pages it had, and enqueues only what the first one did not: nothing is embedded
twice.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import httpx

from corpus import documents
from corpus.errors import DocumentNotFound
from corpus.model import Page as CorpusPage
from corpus.model import Put, PutOutcome
from crawl.extractor import Extractor
from crawl.fetch import crawl_client
from crawl.limits import CrawlLimits
from crawl.pages import CrawlReport, CrawlRequest, Outcome, Page, Reason, Validators
from crawl.robots import Robots
from crawl.site import crawl_site
from jobs import tenant_egress
from jobs.errors import Retry
from jobs.kinds import CrawlPayload
from jobs.model import JsonObject, NewJob
from runtime import metrics
from runtime.egress import EgressPolicy
from runtime.settings import Settings
from runtime.version import VERSION
from workers.run import Run, Services

# Few enough that embedding starts early, many enough that one job is worth its round trips.
DOCUMENTS_PER_EMBED = 8
DOCUMENTS_LISTED_MAX = 1000

_PASSING = frozenset(
    {
        Reason.UNREACHABLE,
        Reason.CONNECT_TIMEOUT,
        Reason.FIRST_BYTE_TIMEOUT,
        Reason.STALLED,
        Reason.PAGE_TIMEOUT,
        Reason.BROKEN,
        Reason.PROTOCOL,
        Reason.THROTTLED,
    }
)


@dataclass(slots=True)
class Tools:
    """What all crawls of a slot share: guarded client, parser process, robots.txt cache."""

    client: httpx.AsyncClient
    extractor: Extractor
    robots: Robots
    limits: CrawlLimits

    async def aclose(self) -> None:
        """Close the connections and end the parser; a slot's end does the same."""
        await self.client.aclose()
        await self.extractor.aclose()


def tools_of(services: Services) -> Tools:
    """The slot's tools, made on first need; they end with the slot."""
    tools = services.engines.get("crawl")
    if not isinstance(tools, Tools):
        limits = CrawlLimits()
        client = crawl_client(_policy(services.settings), user_agent=_user_agent(), limits=limits)
        tools = Tools(client, Extractor(limits), Robots(client, limits), limits)
        services.engines["crawl"] = tools
    return tools


def _policy(settings: Settings) -> EgressPolicy:
    return EgressPolicy(allow=settings.egress_allow)


def _user_agent() -> str:
    return f"xnai/{VERSION} (self-hosted crawler)"


async def handle(run: Run[CrawlPayload]) -> JsonObject:
    """Crawl; Retry when nothing was reached for a reason that may pass."""
    sink = _Sink(run)
    async with _tools_for(run) as tools:
        report = await crawl_site(
            _request(run.payload),
            client=tools.client,
            extractor=tools.extractor,
            known=sink.known,
            on_page=sink.page,
            on_unchanged=sink.unchanged,
            on_progress=run.progress,
            limits=tools.limits,
            robots=tools.robots,
        )
    await sink.flush()
    for outcome, count in report.pages.items():
        metrics.CRAWL_PAGES.labels(outcome=outcome.value).inc(count)
    _retry_if_nothing_was_reached(report)
    return _result(report, sink)


@asynccontextmanager
async def _tools_for(run: Run[CrawlPayload]) -> AsyncIterator[Tools]:
    """The slot's tools, or some with a client of its own for a tenant that may reach more.

    A connection that is kept open, or rules of robots.txt that are remembered, would otherwise lead
    the next tenant where only this one may go.
    """
    tools = tools_of(run.services)
    async with run.services.postgres.acquire() as connection:
        entries = await tenant_egress.entries_of(connection, run.job.tenant_id)
    if not entries:
        yield tools
        return
    policy = _policy(run.services.settings).plus(entries)
    async with crawl_client(policy, user_agent=_user_agent(), limits=tools.limits) as client:
        yield Tools(client, tools.extractor, Robots(client, tools.limits), tools.limits)


def _request(payload: CrawlPayload) -> CrawlRequest:
    return CrawlRequest(
        urls=payload.start_urls,
        max_pages=max(payload.max_pages, len(payload.start_urls)),
        max_depth=payload.max_depth,
        scope=payload.scope,
        include=payload.include,
        exclude=payload.exclude,
        sitemap=payload.sitemap,
    )


@dataclass(slots=True)
class _Sink:
    """Where the pages of one crawl go. Called by the crawl one page at a time."""

    run: Run[CrawlPayload]
    kept: list[UUID] = field(default_factory=list)
    kept_total: int = 0
    changed_total: int = 0
    _to_embed: list[UUID] = field(default_factory=list)

    async def known(self, url: str) -> Validators | None:
        """What was kept of a page's last visit."""
        job = self.run.job
        async with self.run.services.postgres.acquire() as connection:
            found = await documents.validators(
                connection, job.tenant_id, self.run.payload.collection, [url]
            )
        kept = found.get(url)
        if kept is None:
            return None
        return Validators(kept.etag, kept.last_modified, kept.page_hash, kept.links)

    async def page(self, page: Page) -> None:
        """Keep a page with new content, or note that its content is known."""
        kept = CorpusPage(
            key=page.url,
            text=page.text,
            url=page.final_url,
            title=page.title,
            etag=page.etag,
            last_modified=page.last_modified,
            page_hash=page.content_hash,
            links=page.links,
        )
        async with self.run.fenced() as connection:
            put = await documents.put_page(
                connection, self.run.job.tenant_id, self.run.payload.collection, kept
            )
        await self._note(put)

    async def unchanged(self, url: str, validators: Validators) -> None:
        """Keep the validators of a page that has not changed; one deleted meanwhile is left out."""
        collection, tenant_id = self.run.payload.collection, self.run.job.tenant_id
        async with self.run.fenced() as connection:
            found = await documents.validators(connection, tenant_id, collection, [url])
            if url not in found:
                return
            try:
                put = await documents.touch(
                    connection,
                    found[url].document_id,
                    etag=validators.etag,
                    last_modified=validators.last_modified,
                    page_hash=validators.content_hash,
                    links=validators.links,
                )
            except DocumentNotFound:
                return
        await self._note(put)

    async def _note(self, put: Put) -> None:
        self.kept_total += 1
        self.changed_total += put.outcome is not PutOutcome.UNCHANGED
        if len(self.kept) < DOCUMENTS_LISTED_MAX:
            self.kept.append(put.document_id)
        if put.needs_embedding and self.run.payload.pipeline:
            self._to_embed.append(put.document_id)
            if len(self._to_embed) >= DOCUMENTS_PER_EMBED:
                await self.flush()

    async def flush(self) -> None:
        """Enqueue the embed job of the documents that wait for one."""
        if self._to_embed:
            async with self.run.fenced() as connection:
                await self.run.spawn(
                    connection, (embed_job(self.run.payload.collection, self._to_embed),)
                )
            self._to_embed.clear()


def embed_job(collection: str, document_ids: list[UUID]) -> NewJob:
    """The follow-up that makes documents searchable."""
    ids = [str(document_id) for document_id in document_ids]
    return NewJob("embed", {"collection": collection, "document_ids": ids})


def _retry_if_nothing_was_reached(report: CrawlReport) -> None:
    pages = report.pages
    if pages[Outcome.FETCHED] or pages[Outcome.UNCHANGED] or not pages[Outcome.FAILED]:
        return
    if all(failure.reason in _PASSING for failure in report.failures):
        first = report.failures[0]
        asked = [failure.retry_after_s or 0.0 for failure in report.failures]
        detail = f"{first.url}: {first.detail}"
        raise Retry(detail, type_=first.reason.value, after_s=max(asked) or None)


def _result(report: CrawlReport, sink: _Sink) -> JsonObject:
    return {
        "pages": {outcome.value: count for outcome, count in report.pages.items()},
        "documents": [str(document_id) for document_id in sink.kept],
        "documents_total": sink.kept_total,
        "documents_changed": sink.changed_total,
        "failures": [
            {
                "url": failure.url,
                "outcome": failure.outcome.value,
                "reason": failure.reason.value,
                "detail": failure.detail,
                "status": failure.status,
            }
            for failure in report.failures
        ],
        "failures_omitted": report.failures_omitted,
        "duplicates": report.duplicates,
    }
