"""The plans of a search hold on a large table that nobody has analysed yet."""

import pytest

from corpus import retrieval
from corpus.collections import QUERIES
from jobs.model import DEFAULT_TENANT
from runtime.postgres import Connection, Pool

pytestmark = pytest.mark.anyio

CHUNKS = 20_000

FILL = """
WITH c AS (INSERT INTO collections (tenant_id, name) VALUES ($1, 'large') RETURNING id),
t AS (INSERT INTO contents (tenant_id, hash, text, chars)
      VALUES ($1, sha256('x'), 'x', 1) RETURNING id),
d AS (INSERT INTO documents (id, tenant_id, collection_id, key)
      SELECT gen_random_uuid(), $1, c.id, 'k' || i FROM c, generate_series(1, $2::int / 100) AS i
      RETURNING id),
v AS (INSERT INTO versions (document_id, number, content_id) SELECT d.id, 1, t.id FROM d, t
      RETURNING document_id),
e AS (INSERT INTO editions
          (collection_id, document_id, version, chunker, chunks, completed_at, born_gen)
      SELECT c.id, v.document_id, 1, 'x', 100, now(), 1 FROM c, v RETURNING id)
-- As wide as the rows of real passages: of narrower ones the table has so few pages that reading
-- all of them costs what following an index does, and the planner's choice would be luck.
INSERT INTO chunks (id, edition_id, ordinal, start_at, end_at, heading, tsv, vector)
SELECT gen_random_uuid(), e.id, n, 0, 1, repeat('x', 1000),
       to_tsvector('simple', 'common word' || (e.id * 100 + n) % 5000)
           || array_to_tsvector(ARRAY['#' || c.id]),
       '\\x00'
FROM e, c, generate_series(0, 99) AS n
"""


async def fill(connection: Connection) -> int:
    await connection.execute("ALTER TABLE chunks SET (autovacuum_enabled = false)")
    await connection.execute(FILL, DEFAULT_TENANT, CHUNKS)
    found: int = await connection.fetchval("SELECT id FROM collections")
    return found


async def plan(connection: Connection, query: str, *arguments: object) -> str:
    rows = await connection.fetch(f"EXPLAIN {QUERIES[query]}", *arguments)
    return "\n".join(row[0] for row in rows)


async def test_candidates_are_found_by_key_and_words_by_their_index(db: Pool) -> None:
    async with db.acquire() as connection:
        collection_id = await fill(connection)
        words = retrieval.weigh(collection_id, {"word17": 4, "common": 2000}, CHUNKS)
        weighed = list(words.queries), list(words.weights)
        none = (None, None, None)
        by_text = await plan(
            connection,
            "text_candidates",
            collection_id,
            1,
            words.matches[0],
            *weighed,
            5000,
            100,
            *none,
        )
        some = list(range(1, 200))
        by_id = await plan(
            connection, "score_candidates", collection_id, 1, some, *weighed, some, *none
        )
        hits = await plan(connection, "read_hits", collection_id, 1, some[:10])
    assert "chunks_tsv" in by_text
    assert "Seq Scan on chunks" not in by_text
    for text in (by_id, hits):
        assert "chunks_vector_id_key" in text
        assert "Seq Scan on chunks" not in text


async def test_rare_words_bring_the_candidates_of_a_long_question(db: Pool) -> None:
    async with db.acquire() as connection:
        collection_id = await fill(connection)
        counts = await retrieval.count_chunks(connection, collection_id, ["word17", "common", "no"])
        words = retrieval.weigh(
            collection_id, dict(zip(["word17", "common", "no"], counts, strict=True)), CHUNKS
        )
        pinned = retrieval.Pinned(collection_id, 1)
        found = await retrieval.text_candidates(connection, pinned, words, None, limit=100)
    assert counts == [4, retrieval.COMMON_CHUNKS, 0]
    assert words.matches == (f"'#{collection_id}' & ('word17')",)
    assert len(found) == 4


def test_common_words_must_all_be_there_before_any_will_do() -> None:
    common = retrieval.COMMON_CHUNKS
    words = retrieval.weigh(7, {"the": common, "of": common}, 1_000_000)
    assert words.matches == ("'#7' & ('of' & 'the')", "'#7' & ('of' | 'the')")


def test_words_are_quoted_for_tsquery() -> None:
    words = retrieval.weigh(7, {"it's": 1, "c:\\": 1}, 10)
    assert words.matches == ("'#7' & ('c:\\\\' | 'it''s')",)
