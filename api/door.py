"""The ASGI middleware at the door of /v1: a key, the tenant's rate, and an end to streams whose key
has ended. All of it before a path, a query or a body is looked at.
"""

from typing import cast

import anyio
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import Authenticator, Principal
from api.errors import Problem
from api.rates import Fields, Rates
from api.translations import POSTGRES_AWAY, postgres_away


class Authentication:
    """Everything below /v1 needs a key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the principal into the request's state, or answer 401, 429 or 503."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        services = scope["app"].state.services
        authenticator = cast("Authenticator", services.authenticator)
        header = Request(scope).headers.get("authorization")
        try:
            principal = await authenticator.authenticate(header, address_of(scope) or "")
            if principal.quotas.requests_per_minute is not None:
                rates = cast("Rates", services.rates)
                limit = principal.quotas.requests_per_minute
                send = _adding(await rates.take(principal.tenant_id, limit), send)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        except POSTGRES_AWAY as error:
            await postgres_away(error).response()(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        if scope["path"].endswith("/events"):
            await self._stream(scope, receive, send, principal)
        else:
            await self._app(scope, receive, send)

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, principal: Principal
    ) -> None:
        """A stream lasts for an hour: it must not outlive its key by as much."""
        authenticator = cast("Authenticator", scope["app"].state.services.authenticator)
        has_begun = is_over = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun, is_over
            has_begun = True
            is_body = message["type"] == "http.response.body"
            is_over = is_body and not message.get("more_body", False)
            await send(message)

        try:
            with authenticator.stream(principal) as cut:
                await self._app(scope, receive, send_noted)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if cut.cancelled_caught and has_begun and not is_over:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def address_of(scope: Scope) -> str | None:
    """Where the request comes from; the proxy's word for it, if the proxy is trusted."""
    client = scope.get("client")
    return None if client is None else str(client[0])


def _adding(fields: Fields, send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *fields]
        await send(message)

    return send_more
