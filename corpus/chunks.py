"""Editions and their chunks: what an embed job stores, window by window, and an index job reads.

An edition is the chunks of one version, cut by one chunker. It is written once, by however many
attempts that takes, and is immutable when complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from corpus.collections import QUERIES
from corpus.model import Edition, NewChunk, StoredVectors
from runtime.ids import uuid7s
from runtime.postgres import Connection


@dataclass(frozen=True, slots=True)
class EditionPlan:
    """An edition to begin: how many chunks a document's version was cut into."""

    document_id: UUID
    version: int
    chunks: int


async def begin(
    connection: Connection, collection_id: int, chunker: str, plans: Sequence[EditionPlan]
) -> list[Edition]:
    """Begin editions, or find those that an earlier attempt began; a purged version has none.

    An edition without chunks is complete at once.
    """
    ids = [plan.document_id for plan in plans]
    numbers = [plan.version for plan in plans]
    counts = [plan.chunks for plan in plans]
    await connection.execute(QUERIES["drop_misfits"], chunker, ids, numbers, counts)
    await connection.execute(
        QUERIES["begin_editions"], collection_id, chunker, ids, numbers, counts
    )
    await complete(connection, [edition.id for edition in await _find(connection, chunker, plans)])
    return await _find(connection, chunker, plans)


async def find(
    connection: Connection, chunker: str, versions: Sequence[tuple[UUID, int]]
) -> list[Edition]:
    """Those editions of these (document, version) that were begun already."""
    return await _find(connection, chunker, [EditionPlan(*pair, 0) for pair in versions])


async def stored_ordinals(
    connection: Connection, edition_ids: Sequence[int]
) -> set[tuple[int, int]]:
    """The (edition, ordinal) pairs that are stored: what a second attempt need not embed again."""
    rows = await connection.fetch(QUERIES["stored_ordinals"], list(edition_ids))
    return {(row["edition_id"], row["ordinal"]) for row in rows}


async def store(
    connection: Connection, collection_id: int, chunks: Sequence[tuple[int, NewChunk]]
) -> None:
    """Store (edition id, chunk) pairs in one statement; those already there are left alone."""
    await connection.execute(
        QUERIES["store_chunks"],
        collection_id,
        uuid7s(len(chunks)),
        [edition_id for edition_id, _ in chunks],
        [chunk.ordinal for _, chunk in chunks],
        [chunk.start_at for _, chunk in chunks],
        [chunk.end_at for _, chunk in chunks],
        [chunk.heading for _, chunk in chunks],
        [chunk.words for _, chunk in chunks],
        [chunk.vector for _, chunk in chunks],
    )


async def complete(connection: Connection, edition_ids: Sequence[int]) -> None:
    """Mark those editions complete whose chunks are all stored; idempotent."""
    await connection.fetch(QUERIES["complete_editions"], list(edition_ids))


async def vectors(connection: Connection, edition_ids: Sequence[int]) -> StoredVectors:
    """The vectors of these editions' chunks, by vector id."""
    rows = await connection.fetch(QUERIES["edition_vectors"], list(edition_ids))
    return StoredVectors([row["vector_id"] for row in rows], [row["vector"] for row in rows])


async def _find(
    connection: Connection, chunker: str, plans: Sequence[EditionPlan]
) -> list[Edition]:
    rows = await connection.fetch(
        QUERIES["editions_of"],
        chunker,
        [plan.document_id for plan in plans],
        [plan.version for plan in plans],
    )
    return [
        Edition(
            id=row["id"],
            document_id=row["document_id"],
            version=row["version"],
            chunks=row["chunks"],
            is_complete=row["is_complete"],
            stored=row["stored"],
        )
        for row in rows
    ]
