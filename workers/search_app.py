"""The search role's HTTP face: `POST /search` for callers that know the secret, `GET /healthz`.

Plain ASGI: two routes need no framework. It trusts nothing that it reads.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import asyncpg
import orjson
from pydantic import BaseModel, ValidationError

from corpus.errors import CollectionNotFound, SearchRefused, SearchUnavailable
from corpus.search import SearchRequest
from engines.errors import EngineError
from runtime import metrics
from runtime.logs import logger
from runtime.postgres import UNREACHABLE
from workers.search_query import Searcher

# ASGI's own types: its dictionaries hold whatever the server puts there.
type Scope = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
type Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 256 * 1024
ANSWER_WITHIN_S = 18.0

log = logger("search_app")


class Problem(Exception):
    """An answer that is not a result: a status, a stable word, and what is wrong."""

    def __init__(self, status: int, type_: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.type = type_


class SearchApp:
    """An ASGI application around one Searcher."""

    def __init__(self, searcher: Searcher, secret: str) -> None:
        self._searcher = searcher
        self._expected = f"Bearer {secret}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            status, body = await self._route(scope, receive)
        except Problem as problem:
            status = problem.status
            body = orjson.dumps({"type": problem.type, "detail": str(problem)})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        match scope["method"], scope["path"]:
            case "GET", "/healthz":
                return 200, b'{"status":"ok"}'
            case "POST", "/search":
                self._authorize(scope)
                request = _parse(await _body(receive))
                with metrics.SEARCH_LATENCY.labels(request.mode).time():
                    answer = await self._search(request)
                return 200, answer.model_dump_json().encode()
            case _:
                raise Problem(404, "not_found", "there is POST /search and GET /healthz")

    def _authorize(self, scope: Scope) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not secrets.compare_digest(given, self._expected):
            raise Problem(401, "unauthorized", "the installation's own processes only")

    async def _search(self, request: SearchRequest) -> BaseModel:
        """The one place where errors become statuses."""
        try:
            with anyio.fail_after(ANSWER_WITHIN_S):
                return await self._searcher.search(request)
        except CollectionNotFound as error:
            raise Problem(404, "collection_not_found", str(error)) from error
        except SearchRefused as error:
            raise Problem(409, error.type, str(error)) from error
        except SearchUnavailable as error:
            raise Problem(503, "index_not_ready", str(error)) from error
        except EngineError as error:
            raise Problem(503, error.code, str(error)) from error
        except TimeoutError as error:
            detail = f"no answer within {ANSWER_WITHIN_S:g} s"
            raise Problem(503, "timeout", detail) from error
        except (*UNREACHABLE, asyncpg.InterfaceError, asyncpg.PostgresError) as error:
            log.warning("search_failed", detail=str(error))
            raise Problem(503, "database_unavailable", str(error)) from error


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Problem(400, "invalid_request", "the request ended early")
        body += event.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise Problem(413, "too_large", f"at most {MAX_BODY_BYTES} bytes are read")
        if not event.get("more_body"):
            return bytes(body)


def _parse(body: bytes) -> SearchRequest:
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        detail = "; ".join(
            f"/{'/'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise Problem(422, "invalid_request", detail) from error
