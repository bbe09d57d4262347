"""What holds for every request before routing: a readable address in, careful headers out."""

from urllib.parse import unquote_to_bytes

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Problem, ProblemType, invalid

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


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
