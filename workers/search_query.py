"""Answers one search: both legs on one pinned generation, fused with measured weights.

The weights and how they were found: docs/decisions/0007-corpus-and-generations.md.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from corpus import generations, retrieval
from corpus.errors import CollectionNotFound, SearchRefused, SearchUnavailable
from corpus.model import DEFAULT_COLLECTION, IndexState
from corpus.retrieval import Pinned, Scored, Words
from corpus.search import MAX_K, SearchRequest, SearchResponse
from engines.embed import Embedder
from engines.index import IndexView
from jobs.model import TenantId
from runtime.postgres import Pool
from workers.search_index import Pin, SearchIndexes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    type Vector = NDArray[np.float32]

TEXT_WEIGHT = 0.2
CANDIDATES = 2 * MAX_K
WIDER = 4
QUERIES_KEPT = 512
WORDS_KEPT = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A request on its way: what it asks, and the one generation that it is asked of."""

    request: SearchRequest
    state: IndexState
    pin: Pin

    @property
    def pinned(self) -> Pinned:
        """The collection and generation for Postgres."""
        return Pinned(self.state.collection_id, self.pin.generation)


class QueryEmbedder:
    """The embedding model of a search process: loaded by the first query, one query at a time."""

    def __init__(self, load: Callable[[], Embedder]) -> None:
        self._load = load
        self._embedder: Embedder | None = None
        self._lock = anyio.Lock()
        self._kept: OrderedDict[str, Vector] = OrderedDict()

    async def vector(self, query: str, state: IndexState) -> "Vector":
        """The query's vector, by the model that the collection is bound to; else SearchRefused."""
        async with self._lock:
            if self._embedder is None:
                self._embedder = await anyio.to_thread.run_sync(self._load)
            if state.model_digest != self._embedder.digest:
                detail = (
                    f"the collection holds vectors of {state.model_name}, the search process has "
                    f"{self._embedder.name}: set XNAI_EMBED_MODEL to the former, or ask in mode "
                    "text"
                )
                raise SearchRefused("model_mismatch", detail)
            if query not in self._kept:
                found = await anyio.to_thread.run_sync(self._embedder.embed, [query])
                self._kept[query] = found.vectors[0]
                while len(self._kept) > QUERIES_KEPT:
                    self._kept.popitem(last=False)
            return self._kept[query]


class Searcher:
    """Everything that a search needs, for the life of a process."""

    def __init__(
        self, pool: Pool, indexes: SearchIndexes, embedder: QueryEmbedder, *, threads: int
    ) -> None:
        self._pool = pool
        self._indexes = indexes
        self._embedder = embedder
        self._searching = anyio.CapacityLimiter(threads)

    async def search(self, request: SearchRequest) -> SearchResponse:
        """Answer; raises CollectionNotFound and SearchRefused, and what the database raises.

        The collection `default` exists before its first document: it is empty.
        """
        started = time.perf_counter()
        tenant_id = TenantId(request.tenant_id)
        try:
            async with self._pool.acquire() as connection:
                state = await generations.state(connection, tenant_id, request.collection)
        except CollectionNotFound:
            if request.collection != DEFAULT_COLLECTION:
                raise
            return _empty(started)
        if not state.generation:
            return _empty(started)
        pin = await self._indexes.pin(tenant_id, request.collection, state)
        question = Question(request, state, pin)
        ranked = await self._rank(question)
        hits = await retrieval.read_hits(self._pool, question.pinned, ranked)
        return SearchResponse(
            hits=hits,
            index_generation=pin.generation,
            stale=pin.stale,
            took_ms=_ms_since(started),
        )

    async def _rank(self, question: Question) -> list[tuple[int, float]]:
        """(vector id, score) of the best `k` that are visible, best first."""
        mode = question.request.mode
        words, by_text = Words(), list[int]()
        if mode != "vector":
            words = await self._words(question)
            by_text = await retrieval.text_candidates(
                self._pool, question.pinned, words, question.request.filter, limit=CANDIDATES
            )
        if mode != "text" and question.pin.view is not None:
            vector = await self._embedder.vector(question.request.query, question.state)
            return await self._rank_by_vector(question, words, vector, by_text)
        if mode == "vector":
            raise SearchUnavailable("the vector index is still being loaded: ask again")
        scored = await self._score(question, words, by_text, ())
        return _best(_text_shares(words, scored), question.request.k)

    async def _rank_by_vector(
        self, question: Question, words: Words, vector: "Vector", by_text: Sequence[int]
    ) -> list[tuple[int, float]]:
        """Look wider while what the index finds is hidden in Postgres (deleted, or replaced)."""
        view = question.pin.view or IndexView()
        only = await self._allowed(question)
        reach = len(view) if only is None else len(only)
        k, wanted = question.request.k, CANDIDATES
        while True:
            near = await self._nearest(view, vector, wanted, only)
            far = [item for item in by_text if item not in near]
            scored = await self._score(question, words, [*near, *far], far)
            visible = sum(item in scored for item in near)
            if visible >= k or wanted >= reach:
                return _best(_fused(question, words, scored, near=near, vector=vector), k)
            wanted *= WIDER

    async def _nearest(
        self, view: IndexView, vector: "Vector", wanted: int, only: Sequence[int] | None
    ) -> dict[int, float]:
        def find() -> dict[int, float]:
            hits = view.search(vector, min(wanted, max(1, len(view))), only=only)
            return {
                int(vector_id): float(score)
                for vector_id, score in zip(hits.ids[0], hits.scores[0], strict=True)
                if vector_id >= 0
            }

        return await anyio.to_thread.run_sync(find, limiter=self._searching)

    async def _allowed(self, question: Question) -> Sequence[int] | None:
        narrowed = question.request.filter
        if narrowed is None:
            return None
        return await retrieval.allowed_vectors(self._pool, question.pinned, narrowed)

    async def _score(
        self,
        question: Question,
        words: Words,
        candidates: Sequence[int],
        with_vectors: Sequence[int],
    ) -> Mapping[int, Scored]:
        return await retrieval.score_candidates(
            self._pool,
            question.pinned,
            words,
            question.request.filter,
            candidates=candidates,
            with_vectors=with_vectors,
        )

    async def _words(self, question: Question) -> Words:
        """The query's words, weighed by rarity: ts_rank alone would count `the` like any other."""
        collection_id = question.state.collection_id
        known = self._indexes.words_of(question.pin.generation, collection_id)
        if len(known) > WORDS_KEPT:
            known.clear()
        async with self._pool.acquire() as connection:
            words = await retrieval.lexemes(connection, question.request.query)
            new = [word for word in words if word not in known]
            counts = await retrieval.count_chunks(connection, collection_id, new)
            known.update(zip(new, counts, strict=True))
            total = await generations.live_chunks(connection, collection_id, None)
        return retrieval.weigh(collection_id, {word: known[word] for word in words}, total)


def _fused(
    question: Question,
    words: Words,
    scored: Mapping[int, Scored],
    *,
    near: Mapping[int, float],
    vector: "Vector",
) -> dict[int, float]:
    """The weighted sum of the cosine and the text share; the cosine alone in mode `vector`."""
    cosines = {
        vector_id: near[vector_id] if vector_id in near else _cosine(item, vector)
        for vector_id, item in scored.items()
    }
    if question.request.mode == "vector":
        return cosines
    shares = _text_shares(words, scored)
    return {
        vector_id: (1 - TEXT_WEIGHT) * cosine + TEXT_WEIGHT * shares[vector_id]
        for vector_id, cosine in cosines.items()
    }


def _text_shares(words: Words, scored: Mapping[int, Scored]) -> dict[int, float]:
    """Text scores as shares of the best one, which itself counts only for what it covers."""
    best = max((item.text_score for item in scored.values()), default=0.0)
    whole = max(best, words.bound / 2)
    return {
        vector_id: item.text_score / whole if whole else 0.0 for vector_id, item in scored.items()
    }


def _cosine(item: Scored, vector: "Vector") -> float:
    import numpy as np  # noqa: PLC0415 - the process starts without it

    if item.vector is None:
        return 0.0
    return float(np.frombuffer(item.vector, dtype="<f4") @ vector)


def _best(scores: Mapping[int, float], k: int) -> list[tuple[int, float]]:
    """The highest `k`; ties by id, so that an answer never depends on how segments were cut."""
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return [
        (vector_id, round(score, 6)) for vector_id, score in ranked[:k] if not math.isnan(score)
    ]


def _empty(started: float) -> SearchResponse:
    return SearchResponse(hits=(), index_generation=0, stale=False, took_ms=_ms_since(started))


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
