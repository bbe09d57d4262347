"""Generations: which chunks a search sees, moved one step at a time by compare-and-set.

Segments are ranges of generations; their files belong to whoever builds them. Every writing
function joins the caller's transaction, which must be fenced by the attempt that writes.
"""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from asyncpg import Record

from corpus.collections import QUERIES
from corpus.errors import CollectionNotFound, GenerationConflict
from corpus.model import IndexState, PendingEdition, Segment
from jobs.model import NewJob, TenantId
from runtime.postgres import Connection


async def state(connection: Connection, tenant_id: TenantId, collection: str) -> IndexState:
    """The collection's generation and live segments in one snapshot; raises CollectionNotFound."""
    rows = await connection.fetch(QUERIES["index_state"], tenant_id, collection)
    if not rows:
        raise CollectionNotFound(collection)
    return IndexState(
        collection_id=rows[0]["collection_id"],
        generation=rows[0]["generation"],
        dimensions=rows[0]["dimensions"],
        model_digest=rows[0]["model_digest"],
        model_name=rows[0]["model_name"],
        segments=tuple(_segment(row) for row in rows if row["id"] is not None),
    )


async def pending(
    connection: Connection, collection_id: int, *, limit: int = 10_000
) -> list[PendingEdition]:
    """Complete editions that no generation shows yet, one a document, oldest first."""
    rows = await connection.fetch(QUERIES["pending_editions"], collection_id, limit)
    return [PendingEdition(row["id"], row["document_id"], row["chunks"]) for row in rows]


async def advance(
    connection: Connection,
    collection_id: int,
    *,
    expected: int,
    editions: Sequence[int],
    segment: Segment | None,
) -> int:
    """Make the generation after `expected`: these editions appear, their documents' old ones go.

    One step for all of them. `segment` holds their chunks; without chunks there is none. Returns
    the new generation; raises GenerationConflict when somebody else moved first.
    """
    generation = expected + 1
    moved = await connection.fetchval(QUERIES["advance_generation"], collection_id, generation)
    if moved is None:
        raise GenerationConflict(f"generation {expected} of collection {collection_id} has passed")
    await connection.execute(QUERIES["retire_editions"], list(editions), generation)
    born = await connection.fetch(QUERIES["bear_editions"], list(editions), generation)
    if len(born) != len(editions):
        # Purged since they were read: the segment would promise chunks that are gone.
        raise GenerationConflict(f"{len(editions) - len(born)} of the editions are gone")
    if segment is not None:
        await _add_segment(connection, collection_id, segment)
    return generation


async def replace_segments(
    connection: Connection,
    collection_id: int,
    old: Sequence[Segment],
    new: Segment | None,
) -> None:
    """Put one segment in the place of several whose ranges it spans; shows and hides nothing.

    Raises GenerationConflict when one of them was replaced by somebody else first.
    """
    await connection.fetchval(QUERIES["lock_collection"], collection_id)
    ids = [segment.id for segment in old]
    retired = await connection.fetch(QUERIES["retire_segments"], collection_id, ids)
    if len(retired) != len(old):
        raise GenerationConflict("a segment to be merged was merged already")
    if new is not None:
        await _add_segment(connection, collection_id, new)


async def segment_editions(
    connection: Connection, collection_id: int, low_gen: int, high_gen: int, *, seen_from: int
) -> list[tuple[int, int]]:
    """(edition id, chunks) of a segment's range, without what died before `seen_from`."""
    rows = await connection.fetch(
        QUERIES["range_editions"], collection_id, low_gen, high_gen, seen_from
    )
    return [(row["id"], row["chunks"]) for row in rows]


async def dead_vectors(
    connection: Connection, collection_id: int, after: int, up_to: int
) -> list[int]:
    """Ids of the vectors whose chunks died in the generations (after, up_to]."""
    rows = await connection.fetch(QUERIES["dead_vectors"], collection_id, after, up_to)
    return [row["vector_id"] for row in rows]


async def live_chunks(
    connection: Connection, collection_id: int, document_ids: Sequence[UUID] | None
) -> int:
    """How many chunks of these documents (None: of all) a search finds now."""
    ids = None if document_ids is None else list(document_ids)
    found: int = await connection.fetchval(QUERIES["live_chunks_of"], collection_id, ids)
    return found


def rebuild(collection: str) -> NewJob:
    """The job that builds a collection's index files anew; enqueue it, nothing else is needed."""
    return NewJob(kind="index", payload={"collection": collection, "rebuild": True})


async def _add_segment(connection: Connection, collection_id: int, segment: Segment) -> None:
    await connection.execute(
        QUERIES["add_segment"],
        segment.id,
        collection_id,
        segment.low_gen,
        segment.high_gen,
        segment.vectors,
        segment.file_name,
        segment.checksum,
    )


def _segment(row: Record) -> Segment:
    return Segment(
        id=cast("UUID", row["id"]),
        low_gen=row["low_gen"],
        high_gen=row["high_gen"],
        vectors=row["vectors"],
        file_name=row["file_name"],
        checksum=row["checksum"],
    )
