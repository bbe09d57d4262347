"""What holds for every request around its routing: measured, a readable address in, careful headers
out.
"""

import time
from urllib.parse import unquote_to_bytes

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Problem, ProblemType, invalid
from runtime import metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Measurement:
    """ASGI middleware: counts and times requests by the template of their route.

    An answer that streams is timed until its head is sent: its length is the reader's affair.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
                status = str(message["status"])
                metrics.HTTP_REQUESTS.labels(method=method, route=route, status=status).inc()
                took_s = time.perf_counter() - began
                metrics.HTTP_DURATION.labels(method=method, route=route).observe(took_s)
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
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                message["headers"] = headers.raw
            await send(message)

        problem = _unreadable(scope)
        answer = self._app if problem is None else problem.response()
        await answer(scope, receive, send_hardened)


def _unreadable(scope: Scope) -> Problem | None:
    """The path and the query as bytes must decode: the server has replaced what does not."""
    for place, raw in (("path", scope.get("raw_path") or b""), ("query", scope["query_string"])):
        plain = unquote_to_bytes(raw)
        try:
            plain.decode()
        except UnicodeDecodeError:
            return Problem(ProblemType.MALFORMED, f"the {place} is not UTF-8 once decoded")
        if b"\x00" in plain:
            return invalid("", "must not contain U+0000", place=place)
    return None
