"""Compares what an index finds with what Postgres says it must: the proof that it is complete.

Reads only; it may build a missing file of this data directory, as any search would.
"""

from dataclasses import dataclass
from pathlib import Path

from corpus import audit, generations
from engines.index import IndexView
from jobs.model import TenantId
from runtime.postgres import Pool
from workers import search_segments
from workers.search_segments import Place

REPORTED_MAX = 20


@dataclass(frozen=True, slots=True)
class IndexAudit:
    """Vector ids (some of them) that the index misses, or has no right to hold."""

    generation: int
    vectors: int
    missing: tuple[int, ...]
    foreign: tuple[int, ...]

    @property
    def is_sound(self) -> bool:
        """Whether the index holds what Postgres says and nothing else."""
        return not self.missing and not self.foreign


async def audit_index(
    pool: Pool, data_dir: Path, tenant_id: TenantId, collection: str
) -> IndexAudit:
    """Load a collection's segments and compare; raises CollectionNotFound and IndexDiskError.

    What died, was deleted or purged may lie in the files until a merge: searches do not show it.
    """
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        state = await generations.state(connection, tenant_id, collection)
        shown = await audit.shown_vectors(connection, state.collection_id, state.generation)
    view = IndexView()
    place = Place(data_dir, state.collection_id, threads=1)
    for segment in state.segments:
        loaded = await search_segments.load(
            pool,
            place,
            segment,
            dimensions=state.dimensions or 0,
            seen_from=state.generation,
        )
        view = view.with_segment(str(segment.id), loaded)
    found = view.ids().tolist()
    async with pool.acquire() as connection:
        foreign = await audit.foreign_vectors(
            connection, state.collection_id, state.generation, found
        )
    return IndexAudit(
        generation=state.generation,
        vectors=len(found),
        missing=_some(set(shown) - set(found)),
        foreign=_some(set(foreign)),
    )


def _some(ids: set[int]) -> tuple[int, ...]:
    return tuple(sorted(ids)[:REPORTED_MAX])
