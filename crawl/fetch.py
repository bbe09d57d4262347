"""One URL becomes one document's bytes: every hop judged, every wait and size limited.

Follows redirects itself, so that each hop passes scope, robots and the egress guard. Knows nothing
of what a document says.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import anyio
import httpx

from crawl import urls
from crawl.body import ACCEPT_ENCODING, read_body
from crawl.errors import PageError, Throttled
from crawl.limits import CrawlLimits
from crawl.pages import Reason, Validators
from runtime.egress import EgressDenied, EgressPolicy, guarded_client

type Admit = Callable[[str], Awaitable[None]]

_ACCEPT = "text/html,application/xhtml+xml,text/plain;q=0.8,application/pdf;q=0.8,*/*;q=0.1"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_THROTTLES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_FILE_TYPES = frozenset({"application/pdf", "text/plain", "text/markdown", "text/x-markdown"})
_VAGUE_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream", "unknown/unknown"})
# The first that fits: an error stands before the error that it is a kind of.
_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (httpx.ConnectTimeout, Reason.CONNECT_TIMEOUT),
    (httpx.PoolTimeout, Reason.CONNECT_TIMEOUT),
    (httpx.TimeoutException, Reason.STALLED),
    (httpx.ConnectError, Reason.UNREACHABLE),
    (httpx.NetworkError, Reason.BROKEN),
    (httpx.RemoteProtocolError, Reason.PROTOCOL),
    (httpx.TransportError, Reason.PROTOCOL),
    (httpx.InvalidURL, Reason.BAD_URL),
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document as it came; `body` is None when it has not changed (304)."""

    url: str
    final_url: str
    status: int
    body: bytes | None
    media_type: str
    charset: str | None
    etag: str | None
    last_modified: str | None
    robots_tag: str
    fetched_at: datetime

    @property
    def is_html(self) -> bool:
        """Tell whether the page parser is to read it: labelled so, or vague and looking so."""
        if self.media_type in _VAGUE_TYPES:
            start = (self.body or b"")[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
            return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml"))
        return self.media_type in _HTML_TYPES and not (self.body or b"").startswith(b"%PDF-")


def crawl_client(
    policy: EgressPolicy, *, user_agent: str, limits: CrawlLimits | None = None
) -> httpx.AsyncClient:
    """Open a crawl's client; its User-Agent, `xnai/VERSION (+contact)`, names us to robots.txt."""
    limits = limits or CrawlLimits()
    return guarded_client(
        policy,
        timeout=httpx.Timeout(limits.stall_s, connect=limits.connect_s, pool=limits.page_s),
        limits=httpx.Limits(
            max_connections=limits.connections,
            max_keepalive_connections=limits.connections // 4,
            keepalive_expiry=15.0,
        ),
        headers={
            "User-Agent": user_agent,
            "Accept": _ACCEPT,
            "Accept-Encoding": ACCEPT_ENCODING,
            "Accept-Language": "*",
        },
    )


async def fetch(
    client: httpx.AsyncClient,
    url: str,
    *,
    limits: CrawlLimits,
    admit: Admit,
    validators: Validators | None = None,
    any_type: bool = False,
) -> Fetched:
    """Fetch a canonical URL, asking `admit` about each hop; raises PageError for all that fails."""
    try:
        with anyio.fail_after(limits.page_s):
            hop = _Hops(client, limits, admit, _conditions(validators), any_type=any_type)
            return await hop.follow(url)
    except TimeoutError:
        detail = f"the page had not arrived after {limits.page_s:g} s"
        raise PageError(Reason.PAGE_TIMEOUT, detail) from None


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient, url: str, headers: dict[str, str], limits: CrawlLimits
) -> AsyncIterator[httpx.Response]:
    """Request one hop and hold its response open; its errors are PageErrors, also while reading."""
    try:
        request = client.build_request("GET", url, headers=headers)
        response = await _first_byte(client, request, limits)
        try:
            yield response
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
    except EgressDenied as error:
        raise PageError(Reason.EGRESS, str(error)) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        raise PageError(
            reason, f"{urls.host(url)}: {str(error) or type(error).__name__}"
        ) from error


async def _first_byte(
    client: httpx.AsyncClient, request: httpx.Request, limits: CrawlLimits
) -> httpx.Response:
    detail = f"no answer began within {limits.first_byte_s:g} s"
    try:
        with anyio.fail_after(limits.first_byte_s):
            return await client.send(request, stream=True)
    except (TimeoutError, httpx.ReadTimeout):
        raise PageError(Reason.FIRST_BYTE_TIMEOUT, detail) from None


@dataclass(frozen=True, slots=True)
class _Hops:
    """The way from a URL over its redirects to a document."""

    client: httpx.AsyncClient
    limits: CrawlLimits
    admit: Admit
    headers: dict[str, str]
    any_type: bool

    async def follow(self, url: str) -> Fetched:
        hop, seen = url, {url}
        for _ in range(self.limits.redirects + 1):
            await self.admit(hop)
            async with opened(self.client, hop, self.headers, self.limits) as response:
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    return await self._read(response, url, hop)
                hop = _next_hop(response, hop)
            if hop in seen:
                raise PageError(Reason.REDIRECT_LOOP, f"redirected to {hop} once more")
            seen.add(hop)
        detail = f"more than {self.limits.redirects} redirects"
        raise PageError(Reason.TOO_MANY_REDIRECTS, detail)

    async def _read(self, response: httpx.Response, url: str, hop: str) -> Fetched:
        """Judge the head of the last hop's response, then read its body."""
        _check_status(response)
        media_type, charset = _content_type(response)
        body = None
        if response.status_code == HTTPStatus.OK:
            if not self.any_type:
                _check_type(media_type)
            body = await read_body(response, self.limits.page_bytes)
            if not body:
                raise PageError(Reason.EMPTY, "the page has no content", status=HTTPStatus.OK)
        return Fetched(
            url=url,
            final_url=hop,
            status=response.status_code,
            body=body,
            media_type=media_type,
            charset=charset,
            etag=_header(response, "etag"),
            last_modified=_header(response, "last-modified"),
            robots_tag=response.headers.get("x-robots-tag", "").lower(),
            fetched_at=datetime.now(UTC),
        )


def _next_hop(response: httpx.Response, hop: str) -> str:
    location: str = response.headers["location"]
    following = urls.canonical(location, hop)
    if following is None:
        detail = f"redirected to {location[:200]!r}, which is no page of the web"
        raise PageError(Reason.BAD_URL, detail, status=response.status_code)
    return following


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    detail = f"the server answered {status}"
    if status in _THROTTLES:
        raise Throttled(detail, status=status, retry_after_s=_retry_after_s(response))
    if status not in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}:
        raise PageError(Reason.HTTP_STATUS, detail, status=status)


def _check_type(media_type: str) -> None:
    if media_type not in _HTML_TYPES | _FILE_TYPES | _VAGUE_TYPES:
        detail = f"{media_type[:100]} is not understood: HTML, plain text, markdown and PDF are"
        raise PageError(Reason.UNSUPPORTED_TYPE, detail, status=HTTPStatus.OK)


def _conditions(validators: Validators | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    if validators and validators.etag:
        headers["If-None-Match"] = validators.etag
    if validators and validators.last_modified:
        headers["If-Modified-Since"] = validators.last_modified
    return headers


def _content_type(response: httpx.Response) -> tuple[str, str | None]:
    header = response.headers.get("content-type", "")
    return header.partition(";")[0].strip().lower(), response.charset_encoding


def _header(response: httpx.Response, name: str) -> str | None:
    # It is stored, and sent back as a header: only what survives both, and of a bounded length.
    value: str = response.headers.get(name, "")
    return (
        value if value and value.isascii() and value.isprintable() and len(value) <= 500 else None
    )


def _retry_after_s(response: httpx.Response) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110 §10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal() and len(value) <= 9:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
