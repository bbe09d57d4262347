"""The statements of a search: its text leg, and what Postgres has the last word on for both legs.

Everything is asked of one pinned generation. Knows nothing of models or of vector indexes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from corpus.collections import QUERIES
from corpus.search import Hit, HitDocument, SearchFilter
from runtime.postgres import Connection, Pool

MAX_WORDS = 32
# A word in more chunks than this is common: its weight hardly differs any more, and it does not
# bring candidates as long as there is a rarer one.
COMMON_CHUNKS = 2000
MATCHES_MAX = 5000
ALLOWED_MAX = 100_000
# ts_rank of one word of weight D that occurs very often (PostgreSQL docs, 12.3.3: weights).
ONE_WORD_RANK = 0.1


@dataclass(frozen=True, slots=True)
class Pinned:
    """One generation of one collection: what both legs of a search look at."""

    collection_id: int
    generation: int


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate that is visible: its text score, and its vector's bytes where asked for."""

    text_score: float
    vector: bytes | None


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a query that the collection has, as tsqueries, weighed by their rarity.

    `matches` are tsqueries that bring candidates, to be tried in order until one does. `bound` is
    what a chunk with every word of the query, each very often, would score.
    """

    queries: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    matches: tuple[str, ...] = ()
    bound: float = 0.0


async def lexemes(connection: Connection | Pool, query: str) -> list[str]:
    """The words of a query as the index knows them."""
    rows = await connection.fetch(QUERIES["query_lexemes"], query, MAX_WORDS)
    return [row["lexeme"] for row in rows]


async def count_chunks(
    connection: Connection | Pool, collection_id: int, words: Sequence[str]
) -> list[int]:
    """How many of the collection's chunks have each word, counted up to COMMON_CHUNKS."""
    queries = [f"{_marker(collection_id)} & {_quoted(word)}" for word in words]
    rows = await connection.fetch(QUERIES["count_lexemes"], queries, COMMON_CHUNKS)
    return [row["chunks"] for row in rows]


def weigh(collection_id: int, chunks_by_word: Mapping[str, int], total: int) -> Words:
    """Weigh a query's words as BM25 does, by how few of `total` chunks have them.

    Formula: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009, 3.1.
    """
    known = sorted((count, word) for word, count in chunks_by_word.items() if count)
    weights = {word: _rarity(count, total) for word, count in chunks_by_word.items()}
    return Words(
        queries=tuple(_quoted(word) for _, word in known),
        weights=tuple(weights[word] / ONE_WORD_RANK for _, word in known),
        matches=_matches(collection_id, known),
        bound=sum(weights.values()),
    )


async def text_candidates(
    connection: Connection | Pool,
    pinned: Pinned,
    words: Words,
    narrowed: SearchFilter | None,
    *,
    limit: int,
) -> list[int]:
    """Vector ids of the chunks that fit the words best, best first."""
    for match in words.matches:
        rows = await connection.fetch(
            QUERIES["text_candidates"],
            pinned.collection_id,
            pinned.generation,
            match,
            list(words.queries),
            list(words.weights),
            MATCHES_MAX,
            limit,
            *_parameters(narrowed),
        )
        if rows:
            return [row["vector_id"] for row in rows]
    return []


async def score_candidates(
    connection: Connection | Pool,
    pinned: Pinned,
    words: Words,
    narrowed: SearchFilter | None,
    *,
    candidates: Sequence[int],
    with_vectors: Sequence[int],
) -> dict[int, Scored]:
    """Those candidates that the pinned generation shows and nobody deleted, with their scores."""
    rows = await connection.fetch(
        QUERIES["score_candidates"],
        pinned.collection_id,
        pinned.generation,
        list(candidates),
        list(words.queries),
        list(words.weights),
        list(with_vectors),
        *_parameters(narrowed),
    )
    return {row["vector_id"]: Scored(row["score"], row["vector"]) for row in rows}


async def allowed_vectors(
    connection: Connection | Pool, pinned: Pinned, narrowed: SearchFilter
) -> list[int] | None:
    """The chunks that a filter leaves; None when they are so many that it narrows little."""
    rows = await connection.fetch(
        QUERIES["allowed_vectors"],
        pinned.collection_id,
        pinned.generation,
        *_parameters(narrowed),
        ALLOWED_MAX,
    )
    return None if len(rows) == ALLOWED_MAX else [row["vector_id"] for row in rows]


async def read_hits(
    connection: Connection | Pool, pinned: Pinned, ranked: Sequence[tuple[int, float]]
) -> tuple[Hit, ...]:
    """The passages of (vector id, score) pairs, in that order, without what was deleted since."""
    rows = await connection.fetch(
        QUERIES["read_hits"],
        pinned.collection_id,
        pinned.generation,
        [vector_id for vector_id, _ in ranked],
    )
    by_id = {row["vector_id"]: row for row in rows}
    return tuple(
        Hit(
            score=score,
            text=row["text"],
            chunk_id=row["id"],
            document=HitDocument(id=row["document_id"], url=row["url"], title=row["title"]),
            start=row["start_at"],
            end=row["end_at"],
            heading=row["heading"],
        )
        for vector_id, score in ranked
        if (row := by_id.get(vector_id)) is not None
    )


def _rarity(count: int, total: int) -> float:
    count = min(count, total)
    return math.log(1 + (total - count + 0.5) / (count + 0.5))


def _matches(collection_id: int, known: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """Any of the rarest words that together name enough chunks: small words cost nothing.

    When all are common: chunks with all of them, or else with any.
    """
    if not known:
        return ()
    if known[0][0] >= COMMON_CHUNKS:
        return _match(collection_id, known, " & "), _match(collection_id, known, " | ")
    named, last = 0, 0
    while last < len(known) and (not last or named + known[last][0] <= COMMON_CHUNKS):
        named += known[last][0]
        last += 1
    return (_match(collection_id, known[:last], " | "),)


def _match(collection_id: int, known: Sequence[tuple[int, str]], operator: str) -> str:
    return f"{_marker(collection_id)} & ({operator.join(_quoted(word) for _, word in known)})"


def _parameters(
    narrowed: SearchFilter | None,
) -> tuple[list[UUID] | None, str | None, list[str] | None]:
    if narrowed is None:
        return None, None, None
    return (
        None if narrowed.document_ids is None else list(narrowed.document_ids),
        narrowed.url_prefix,
        None if narrowed.tags is None else list(narrowed.tags),
    )


def _marker(collection_id: int) -> str:
    """The lexeme that every chunk of the collection has beside its words."""
    return f"'#{collection_id}'"


def _quoted(word: str) -> str:
    """A word in tsquery syntax (PostgreSQL docs, 8.11.2: quotes and backslashes are doubled)."""
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
