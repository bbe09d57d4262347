"""What holds for every request around its routing: measured, a readable address in, careful headers
out.
"""

import time
from urllib.parse import unquote_to_bytes

import anyio
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Problem, ProblemType, invalid, unavailable
from runtime import metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# As ASGI has them: names in lower case.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Measurement:
    """ASGI middleware: counts and times requests by the template of their route.

    An answer that streams is timed until its head is sent: its length is the reader's affair.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # Bounded by the methods, the routes' templates and the statuses that there are.
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def _recorders(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        """The two metrics with these labels; looking labels up costs more than recording."""
        known = self._known.get((method, route, status))
        if known is None:
            known = self._known[method, route, status] = (
                metrics.HTTP_REQUESTS.labels(method=method, route=route, status=str(status)),
                metrics.HTTP_DURATION.labels(method=method, route=route),
            )
        return known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and record it once its answer begins."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                # Only templates become labels: a client could make any number of paths.
                route = getattr(scope.get("route"), "path", None) or "none"
                counted, timed = self._recorders(method, route, message["status"])
                counted.inc()
                timed.observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_measured)


class Hardening:
    """ASGI middleware: refuses addresses that are no UTF-8 text, and adds the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400 or 422."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                present = {name for name, _ in headers}
                message["headers"] = [*headers, *(h for h in _HEADERS if h[0] not in present)]
            await send(message)

        problem = _unreadable(scope)
        answer = self._app if problem is None else problem.response()
        await answer(scope, receive, send_hardened)


class LastWord:
    """ASGI middleware: a request that the end of this process cancels is answered with 503.

    Its server would say a bare 500, and nothing of coming again. An answer that has begun is cut.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer in its place if it is cancelled before its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except anyio.get_cancelled_exc_class():
            if has_begun:
                raise
            # The cancellation ends here, as it would in the server: the task ends with the answer.
            await _STOPPING.response()(scope, receive, send)


_STOPPING = unavailable(
    "this process is being stopped: try again; with an Idempotency-Key nothing is accepted twice"
)


def _unreadable(scope: Scope) -> Problem | None:
    """The path and the query as bytes must decode: the server has replaced what does not."""
    for place, raw in (("path", scope.get("raw_path") or b""), ("query", scope["query_string"])):
        if b"%" not in raw and raw.isascii():
            continue
        plain = unquote_to_bytes(raw)
        try:
            plain.decode()
        except UnicodeDecodeError:
            return Problem(ProblemType.MALFORMED, f"the {place} is not UTF-8 once decoded")
        if b"\x00" in plain:
            return invalid("", "must not contain U+0000", place=place)
    return None
