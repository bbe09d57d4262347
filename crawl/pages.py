"""What a crawl takes and what it gives: requests, pages, outcomes and the reasons of failures."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

type Scope = Literal["page", "prefix", "host", "domain"]


class Outcome(StrEnum):
    """How the visit of one URL ended."""

    FETCHED = "fetched"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    BLOCKED = "blocked"


class Reason(StrEnum):
    """Why a URL was not fetched, or its content was of no use."""

    # blocked: not to be fetched, by our rules or by theirs
    BAD_URL = "bad_url"
    EGRESS = "egress"
    ROBOTS = "robots"
    SCOPE = "scope"
    NOINDEX = "noindex"
    # failed: the network or the server
    UNREACHABLE = "unreachable"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    STALLED = "stalled"
    PAGE_TIMEOUT = "page_timeout"
    BROKEN = "broken"
    PROTOCOL = "protocol"
    HTTP_STATUS = "http_status"
    THROTTLED = "throttled"
    REDIRECT_LOOP = "redirect_loop"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    # failed: the content
    TOO_LARGE = "too_large"
    ENCODING = "encoding"
    EMPTY = "empty"
    NOT_TEXT = "not_text"
    UNSUPPORTED_TYPE = "unsupported_type"
    ENCRYPTED = "encrypted"
    PARSE_FAILED = "parse_failed"
    PARSE_TIMEOUT = "parse_timeout"
    PARSER_CRASHED = "parser_crashed"


BLOCKING = frozenset({Reason.BAD_URL, Reason.EGRESS, Reason.ROBOTS, Reason.SCOPE, Reason.NOINDEX})


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a document, level 1 to 6."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a parser found in one document. `content_hash` is the SHA-256 of the normalised text."""

    title: str | None
    text: str
    content_hash: str
    headings: tuple[Heading, ...] = ()
    language: str | None = None
    canonical: str | None = None
    links: tuple[str, ...] = ()
    noindex: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page as handed to the caller: its text, and what asks for it again cheaply.

    `links` are the canonical URLs on it that may be followed, for the day it answers 304.
    """

    url: str
    final_url: str
    status: int
    title: str | None
    text: str
    headings: tuple[Heading, ...]
    language: str | None
    content_hash: str
    etag: str | None
    last_modified: str | None
    fetched_at: datetime
    size_bytes: int
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Validators:
    """What the caller kept of a page's last visit.

    Without `links`, a page whose links are needed is fetched whole and compared by content hash.
    """

    etag: str | None = None
    last_modified: str | None = None
    content_hash: str | None = None
    links: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A URL that gave no page, and why; `status` and `retry_after_s` are HTTP's where there was an
    answer.
    """

    url: str
    outcome: Outcome
    reason: Reason
    detail: str
    status: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class CrawlRequest:
    """What to crawl. `include` and `exclude` are globs, see crawl/patterns.py."""

    urls: tuple[str, ...]
    max_pages: int = 1
    max_depth: int = 0
    scope: Scope = "page"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sitemap: bool = False


@dataclass(frozen=True, slots=True)
class CrawlReport:
    """How a crawl ended: counts by outcome, and the first failures one by one."""

    pages: Mapping[Outcome, int]
    failures: tuple[Failure, ...] = ()
    failures_omitted: int = 0
    duplicates: int = 0
