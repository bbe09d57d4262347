"""Parsing beside the network loop: pages, files and sitemaps go to a process of their own.

A document that hangs or crashes its parser costs that process and its own outcome, nothing else.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import orjson
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import TypeAdapter, ValidationError

from crawl.errors import ExtractionError
from crawl.limits import CrawlLimits
from crawl.pages import Extracted, Reason
from crawl.parser import ANSWER, READY, REQUEST
from crawl.sitemap import Sitemap

_ROOT = Path(__file__).resolve().parent.parent
# No password, key or proxy of ours reaches the process that meets hostile input.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_ENVIRONMENT_OF_COVERAGE = ("COVERAGE_", "COV_CORE_")


@dataclass(frozen=True, slots=True)
class Targets:
    """The functions that parse, as `module:function`."""

    html: str = "crawl.extract:extract_html"
    file: str = "crawl.files:extract_file"
    sitemap: str = "crawl.sitemap:parse_sitemap"


@dataclass(frozen=True, slots=True)
class _Answer[T]:
    """What a parser answers: what it found, or why not. Validated: the parser may be taken over."""

    found: T | None = None
    reason: Reason | None = None
    detail: str = ""


_EXTRACTED = TypeAdapter(_Answer[Extracted])
_SITEMAP = TypeAdapter(_Answer[Sitemap])


class Extractor:
    """A few parsing processes, started on first need, ended when idle; an async context manager.

    Any number of callers may wait for their turn, each with one document in hand: bound them.
    """

    def __init__(self, limits: CrawlLimits | None = None, targets: Targets | None = None) -> None:
        self._limits = limits or CrawlLimits()
        self._targets = targets or Targets()
        self._turns = anyio.Semaphore(self._limits.parsers)
        self._idle: list[_Parser] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the parsers that are idle; the next document starts one again."""
        while self._idle:
            await self._idle.pop().kill()

    async def html(self, body: bytes, *, url: str, charset: str | None = None) -> Extracted:
        """Extract a page; `charset` is its header's. Raises ExtractionError."""
        arguments = {"url": url, "charset": charset, "links_max": self._limits.page_links}
        return await self._ask(_EXTRACTED, self._targets.html, arguments, body)

    async def file(
        self,
        body: bytes,
        *,
        name: str = "",
        media_type: str | None = None,
        charset: str | None = None,
    ) -> Extracted:
        """Extract a markdown, HTML, text or PDF file. Raises ExtractionError."""
        arguments = {"name": name, "media_type": media_type, "charset": charset}
        return await self._ask(_EXTRACTED, self._targets.file, arguments, body)

    async def sitemap(self, body: bytes, *, url: str) -> Sitemap:
        """Read a sitemap or an index of them. Raises ExtractionError."""
        bounds = {"urls_max": self._limits.sitemap_urls, "bytes_max": self._limits.page_bytes}
        return await self._ask(_SITEMAP, self._targets.sitemap, {"url": url, **bounds}, body)

    async def _ask[T](
        self,
        adapter: TypeAdapter[_Answer[T]],
        target: str,
        arguments: Mapping[str, object],
        body: bytes,
    ) -> T:
        request = orjson.dumps({"target": target, "arguments": arguments})
        async with self._turns:
            raw = await self._ask_idle(request, body)
            if raw is None:
                raw = await self._ask_parser(await self._start(), request, body)
        try:
            answer = adapter.validate_json(raw or b"{}")
        except ValidationError as error:
            detail = f"the parser's answer is not one: {error.error_count()} errors"
            raise ExtractionError(Reason.PARSER_CRASHED, detail) from None
        if answer.found is None:
            reason = answer.reason or Reason.PARSER_CRASHED
            raise ExtractionError(reason, answer.detail or "the parser ended without an answer")
        return answer.found

    async def _ask_idle(self, request: bytes, body: bytes) -> bytes | None:
        """Ask a parser that is there; None when there is none, or when it just went, being idle."""
        while self._idle:
            parser = self._idle.pop()
            if parser.is_alive:
                return await self._ask_parser(parser, request, body)
            await parser.kill()
        return None

    async def _ask_parser(self, parser: "_Parser", request: bytes, body: bytes) -> bytes | None:
        """Ask, within the time limit; a parser that gave no answer is killed, also on cancel."""
        raw = None
        try:
            with anyio.fail_after(self._limits.parse_s):
                raw = await parser.ask(request, body)
        except TimeoutError:
            detail = f"the document was still being parsed after {self._limits.parse_s:g} s"
            raise ExtractionError(Reason.PARSE_TIMEOUT, detail) from None
        finally:
            if raw is None:
                await parser.kill()
            else:
                self._idle.append(parser)
        return raw

    async def _start(self) -> "_Parser":
        try:
            with anyio.fail_after(self._limits.parser_start_s):
                return await _Parser.start(self._limits, self._targets.html)
        except TimeoutError:
            detail = f"no parser started within {self._limits.parser_start_s:g} s"
            raise ExtractionError(Reason.PARSER_CRASHED, detail) from None


class _Parser:
    """One parsing process and the pipe to it."""

    def __init__(self, process: anyio.abc.Process, limits: CrawlLimits) -> None:
        if process.stdin is None or process.stdout is None:
            message = "a parser needs pipes on both sides"
            raise ValueError(message)
        self._process = process
        self._requests = process.stdin
        self._answers = BufferedByteReceiveStream(process.stdout)
        self._limits = limits

    @classmethod
    async def start(cls, limits: CrawlLimits, target: str) -> Self:
        """Start a parser with `target` imported; returns when it is ready."""
        bounds = (str(os.getpid()), str(limits.parser_bytes), str(limits.parser_idle_s))
        command = [sys.executable, "-m", "crawl.parser", *bounds, target]
        process = await anyio.open_process(
            command, stdin=PIPE, stdout=PIPE, stderr=None, env=_environment()
        )
        parser = cls(process, limits)
        try:
            if await parser._receive() != READY:
                detail = "the parser does not start, see its error above"
                raise ExtractionError(Reason.PARSER_CRASHED, detail)
        except BaseException:
            await parser.kill()
            raise
        return parser

    @property
    def is_alive(self) -> bool:
        """Tell whether it has not ended, as far as we have heard."""
        return self._process.returncode is None

    async def ask(self, request: bytes, body: bytes) -> bytes | None:
        """Send a document and return the raw answer; None when the process ended instead.

        Raises ExtractionError when it crashed.
        """
        # A parser that is gone is noticed by the missing answer.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._requests.send(REQUEST.pack(len(request), len(body)) + request)
            await self._requests.send(body)
        answer = await self._receive()
        if answer is None and (code := await self._process.wait()) != 0:
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ExtractionError(Reason.PARSER_CRASHED, f"the parser died of {cause}")
        return answer

    async def _receive(self) -> bytes | None:
        try:
            (size,) = ANSWER.unpack(await self._answers.receive_exactly(ANSWER.size))
            if size > self._limits.text_bytes:
                detail = f"the document's text has {size} bytes: {self._limits.text_bytes} at most"
                raise ExtractionError(Reason.TOO_LARGE, detail)
            return await self._answers.receive_exactly(size)
        except (anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return None

    async def kill(self) -> None:
        """End the process at once and reap it; safe when it is gone already."""
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.aclose()


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_OF_COVERAGE)
    }
    inherited = os.environ.get("PYTHONPATH")
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), inherited)))
    return kept
