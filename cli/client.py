"""The command line's view of the API: finds the running stack, sends requests, turns problems into
errors.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

from runtime.errors import EXIT_FAILED, EXIT_NOT_REACHABLE, XnaiError
from runtime.settings import Settings
from runtime.stack import local_api_url

TIMEOUT = httpx.Timeout(10.0, read=60.0)
ADMIN_KEY_FILE = "admin.key"

# A JSON document as it came: what it holds is the API's contract, read field by field where it is
# printed.
type Document = dict[str, Any]


class ApiError(XnaiError):
    """The API refused; the text is its problem document in words."""

    exit_code = EXIT_FAILED

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None
    ) -> None:
        self.status = status
        self.problem = problem
        # When to ask again, for what passes by itself: None for what does not.
        self.retry_after_s = retry_after_s
        super().__init__(_explain(status, problem))


class ApiNotReachable(XnaiError):
    """Nothing answers at the API's address."""

    exit_code = EXIT_NOT_REACHABLE


def _explain(status: int, problem: Mapping[str, Any]) -> str:
    text = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    errors = problem.get("errors") or ()
    parts = [f"{_place(e)}{e.get('detail', '')}" for e in errors if isinstance(e, Mapping)]
    if status == httpx.codes.UNAUTHORIZED:
        parts.append("set XNAI_API_KEY, or run where DATA_DIR/admin.key is readable")
    return "; ".join((text, *parts))


def _place(error: Mapping[str, Any]) -> str:
    line = f"line {error['line']} " if "line" in error else ""
    return f"{line}{error.get('pointer', '')}: "


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: its type, its parsed data, and the id to resume after."""

    type: str
    data: Document
    id: str | None


class Api:
    """A session with the API; use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self.url = (
            settings.api_url or local_api_url(settings) or f"http://127.0.0.1:{settings.port}"
        )
        key = settings.api_key or _admin_key(settings)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, *, params: Mapping[str, Any] | None = None) -> Document:
        """GET a JSON document."""
        return self._json(self.send("GET", path, params=_given(params)))

    def poll(
        self, path: str, etag: str | None, *, wait_s: int
    ) -> tuple[Document | None, str | None]:
        """GET that returns at the first change since `etag`; (None, etag) when nothing changed."""
        headers = {**_prefer(wait_s), **({"If-None-Match": etag} if etag else {})}
        response = self.send("GET", path, headers=headers)
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return None, etag
        return self._json(response), response.headers.get("ETag")

    def post(
        self,
        path: str,
        body: object = None,
        *,
        wait_s: int = 0,
        **options: Any,  # noqa: ANN401 - whatever httpx takes
    ) -> Document:
        """POST JSON (or what `options` give httpx) and return the JSON answer."""
        if body is not None:
            options["json"] = body
        headers = {**_prefer(wait_s), **options.pop("headers", {})}
        return self._json(self.send("POST", path, headers=headers, **options))

    def send(
        self,
        method: str,
        path: str,
        **options: Any,  # noqa: ANN401 - whatever httpx takes
    ) -> httpx.Response:
        """Any request; raises ApiNotReachable and ApiError."""
        with self._reachable():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise _problem(response)
        return response

    def pages(self, path: str, *, params: Mapping[str, Any], most: int) -> Iterator[Document]:
        """Rows of a list, at most `most`, cursor after cursor: even an empty page may have a next
        one.
        """
        cursor: str | None = None
        while most > 0:
            page = self.get(path, params={**params, "cursor": cursor, "limit": min(most, 1000)})
            yield from page["data"][:most]
            most -= len(page["data"])
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    @contextmanager
    def events(self, path: str, *, last_id: str | None = None) -> Iterator[Iterator[ServerEvent]]:
        """Server-sent events of a job, a batch or the tenant, after `last_id`, until either side
        ends.
        """
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.stream(path, headers=headers) as response:
            yield _parse_events(lines_of(response))

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        """GET an answer that is read as it comes; raises ApiNotReachable when it breaks off."""
        with (
            self._reachable(),
            self._http.stream("GET", path, params=_given(params), headers=headers) as response,
        ):
            if response.is_error:
                response.read()
                raise _problem(response)
            yield response

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            message = (
                f"no API answers at {self.url} ({str(error) or type(error).__name__}): "
                "start it with `xnai up`, or set XNAI_API_URL"
            )
            raise ApiNotReachable(message) from error

    @staticmethod
    def _json(response: httpx.Response) -> Document:
        return response.json() if response.content else {}


def lines_of(response: httpx.Response) -> Iterator[str]:
    """The lines of an answer as they come. Those of httpx end at U+2028, too, which JSON may
    hold.
    """
    rest = b""
    for chunk in response.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode()
    if rest:
        yield rest.decode()


def _problem(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
    except ValueError:
        problem = {"title": response.reason_phrase or f"HTTP {response.status_code}"}
    told = problem if isinstance(problem, Mapping) else {}
    return ApiError(response.status_code, told, _retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text[:9]) if text.isascii() and text.isdecimal() else None


def _parse_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Source: HTML Living Standard, server-sent events, "interpreting an event stream"."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = (
                f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            )
            continue
        if "data" in fields:
            yield ServerEvent(
                fields.get("event", "message"), json.loads(fields["data"]), fields.get("id")
            )
        fields = {}


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _prefer(wait_s: int) -> dict[str, str]:
    return {"Prefer": f"wait={wait_s}"} if wait_s else {}


def _admin_key(settings: Settings) -> str | None:
    try:
        return (settings.data_dir / ADMIN_KEY_FILE).read_text(encoding="ascii").strip()
    except OSError:
        return None
