"""Asks a search process: the one of the settings, else whichever beats, the own node's first.

One client a process; `aclose` it. Loads no model and opens no index.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import httpx
import orjson
from pydantic import ValidationError

from corpus import search_servers
from corpus.errors import CollectionNotFound, SearchRefused, SearchUnavailable
from corpus.search import SearchRequest, SearchResponse
from runtime.postgres import Pool
from runtime.settings import Settings

# A cold search process loads its model and its index before its first answer.
TIMEOUT = httpx.Timeout(20.0, connect=1.0)
LIST_AGE_S = 2.0
SEARCH_PATH = "/search"


class SearchClient:
    """Finds search processes in Postgres and asks them in turn."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._http = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False)
        self._urls: Sequence[str] = ()
        self._listed_at = float("-inf")
        self._secret: str | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, pool: Pool) -> AsyncIterator[Self]:
        """A client for the length of the block."""
        client = cls(pool, settings)
        try:
            yield client
        finally:
            await client.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def search(self, request: SearchRequest) -> SearchResponse:
        """The passages that answer the query.

        Raises CollectionNotFound, SearchRefused (the request cannot be answered by any process),
        or SearchUnavailable (no process answered).
        """
        content = request.model_dump_json(exclude_none=True).encode()
        problems: list[str] = []
        for is_fresh in (False, True):
            for url in await self._servers(refresh=is_fresh):
                answer = await self._ask(url, content, problems)
                if answer is not None:
                    return _understood(answer, request)
        raise SearchUnavailable(_unavailable(problems))

    async def _servers(self, *, refresh: bool) -> Sequence[str]:
        if self._settings.search_url is not None:
            return () if refresh else (self._settings.search_url,)
        if refresh or time.monotonic() - self._listed_at > LIST_AGE_S:
            node = search_servers.node_id(self._settings.data_dir)
            self._urls = [server.url for server in await search_servers.live(self._pool, node)]
            self._listed_at = time.monotonic()
        return self._urls

    async def _ask(self, url: str, content: bytes, problems: list[str]) -> httpx.Response | None:
        """One process's answer, or None with a line in `problems` when another should be asked."""
        try:
            answer = await self._post(url, content)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._secret = None
                answer = await self._post(url, content)
        except httpx.TransportError as error:
            problems.append(f"{url}: {str(error) or type(error).__name__}")
            return None
        if answer.is_server_error or answer.status_code == httpx.codes.UNAUTHORIZED:
            problems.append(f"{url}: {answer.status_code} {_detail(answer)[1]}")
            return None
        return answer

    async def _post(self, url: str, content: bytes) -> httpx.Response:
        if self._secret is None:
            self._secret = await search_servers.secret(self._pool)
        headers = {"authorization": f"Bearer {self._secret}", "content-type": "application/json"}
        return await self._http.post(url + SEARCH_PATH, content=content, headers=headers)


def _understood(answer: httpx.Response, request: SearchRequest) -> SearchResponse:
    if answer.is_success:
        try:
            return SearchResponse.model_validate_json(answer.content)
        except ValidationError as error:
            detail = f"{answer.url} is no search process of this version: {error.error_count()}"
            raise SearchUnavailable(detail) from error
    type_, detail = _detail(answer)
    if type_ == "collection_not_found":
        raise CollectionNotFound(request.collection)
    raise SearchRefused(type_, detail)


def _detail(answer: httpx.Response) -> tuple[str, str]:
    try:
        problem = orjson.loads(answer.content)
        return str(problem["type"]), str(problem["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "search_error", f"{answer.status_code} from {answer.url}"


def _unavailable(problems: Sequence[str]) -> str:
    if not problems:
        return "no search process runs: start `xnai search-server`, or set XNAI_SEARCH_URL"
    return f"no search process answers ({'; '.join(dict.fromkeys(problems))}): start one again"
