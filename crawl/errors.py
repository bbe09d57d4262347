"""The tree of what crawl raises. A page's failure is one of these until crawl/site.py counts it."""

from dataclasses import replace
from typing import override

from crawl.pages import BLOCKING, Failure, Outcome, Reason


class CrawlError(Exception):
    """The root of what this package raises."""


class PageError(CrawlError):
    """One URL gave no page; the others of the crawl are not concerned."""

    def __init__(self, reason: Reason, detail: str, *, status: int | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.status = status

    def as_failure(self, url: str) -> Failure:
        """Count it: blocked when a rule forbade the fetch, failed otherwise."""
        outcome = Outcome.BLOCKED if self.reason in BLOCKING else Outcome.FAILED
        return Failure(url, outcome, self.reason, self.detail, self.status)


class Throttled(PageError):
    """The server answered 429 or 503; `retry_after_s` is its wish, if it told one."""

    def __init__(self, detail: str, *, status: int, retry_after_s: float | None) -> None:
        super().__init__(Reason.THROTTLED, detail, status=status)
        self.retry_after_s = retry_after_s

    @override
    def as_failure(self, url: str) -> Failure:
        return replace(super().as_failure(url), retry_after_s=self.retry_after_s)


class ExtractionError(PageError):
    """The bytes arrived but hold no text that we can take."""
