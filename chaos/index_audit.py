"""Whether searches find what Postgres says and nothing else: the index files, and who serves them.

The rules that Postgres alone can check are `chaos.collect`'s.
"""

from collections.abc import Iterable
from uuid import UUID

import anyio
import httpx

from chaos.history import IndexFinding
from chaos.stack import ROLE, Stack
from corpus import collections
from corpus.model import Collection
from corpus.search import MAX_K
from jobs.model import DEFAULT_TENANT, JsonObject
from runtime.postgres import Connection, Pool, open_pool
from runtime.settings import load_settings
from runtime.sql import load_queries
from workers.search_audit import audit_index

# How long the search role may take to catch up with what Postgres shows.
CAUGHT_UP_S = 60.0
# What chaos' documents are made of, though the nearest of so few are all of them.
QUERY = "harbour"
_REPORTED_MAX = 20
_PAUSE_S = 0.2

QUERIES = load_queries("chaos")


async def audit_indexes(stack: Stack, http: httpx.AsyncClient) -> tuple[IndexFinding, ...]:
    """What is wrong with each collection's files in the stack's folder, and with its searches.

    To be asked once nothing writes to the index any more.
    """
    settings = load_settings(data_dir=stack.data_dir, database_url=stack.servers.postgres.url)
    pool = await open_pool(settings, role=ROLE, size=2)
    try:
        async with pool.acquire() as connection:
            found = await collections.list_page(connection, DEFAULT_TENANT)
        return tuple([finding for one in found for finding in await _audit(stack, http, pool, one)])
    finally:
        await pool.close()


async def _audit(
    stack: Stack, http: httpx.AsyncClient, pool: Pool, collection: Collection
) -> list[IndexFinding]:
    files = await audit_index(pool, stack.data_dir, DEFAULT_TENANT, collection.name)
    broken: dict[str, Iterable[object]] = {
        "the files hold every vector that is shown": files.missing,
        "the files hold no vector of others": files.foreign,
    }
    if collection.chunks <= MAX_K:
        async with pool.acquire() as connection:
            shown = await _shown(connection, collection)
        served = await _served(http, collection.name)
        broken |= _differences(shown, served)
    return [
        IndexFinding(collection.name, rule, tuple(sorted(map(str, ids)))[:_REPORTED_MAX])
        for rule, ids in broken.items()
        if ids
    ]


def _differences(
    shown: frozenset[UUID], served: frozenset[UUID] | None
) -> dict[str, Iterable[object]]:
    if served is None:
        return {"a search answers from the newest generation in time": ("none did",)}
    return {
        "a search finds every chunk that is shown": shown - served,
        "a search finds nothing else": served - shown,
    }


async def _shown(connection: Connection, collection: Collection) -> frozenset[UUID]:
    rows = await connection.fetch(QUERIES["shown_chunks"], collection.id)
    return frozenset(row["id"] for row in rows)


async def _served(http: httpx.AsyncClient, name: str) -> frozenset[UUID] | None:
    """Every chunk that a search finds, None when none was answered that is not stale."""
    question: JsonObject = {"query": QUERY, "collection": name, "k": MAX_K, "mode": "vector"}
    with anyio.move_on_after(CAUGHT_UP_S):
        while True:
            try:
                answer = await http.post("/v1/search", json=question)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.is_success and not answer.json()["stale"]:
                return frozenset(UUID(hit["chunk_id"]) for hit in answer.json()["hits"])
            await anyio.sleep(_PAUSE_S)
    return None
