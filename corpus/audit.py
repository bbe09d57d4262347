"""Proves that the index holds what Postgres says and nothing else. Reads only, repairs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus import generations
from corpus.collections import QUERIES
from jobs.model import TenantId
from runtime.postgres import Connection

REPORTED_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that does not hold, and the ids (as text) of some that break it."""

    rule: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """The verdict on one collection at one generation; sound without findings."""

    collection: str
    generation: int
    findings: tuple[Finding, ...]


_RULES = {
    "every shown chunk is in exactly one segment": "unsegmented_editions",
    "every complete edition has all its chunks and vectors": "broken_editions",
    "nothing is born or dies after the current generation": "future_editions",
    "segments do not overlap": "overlapping_segments",
}


async def audit(connection: Connection, tenant_id: TenantId, collection: str) -> Audit:
    """Check the rules that Postgres can check, in one snapshot; raises CollectionNotFound."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        state = await generations.state(connection, tenant_id, collection)
        findings = []
        for rule, query in _RULES.items():
            rows = await connection.fetch(QUERIES[query], state.collection_id, REPORTED_MAX)
            if rows:
                findings.append(Finding(rule, tuple(str(row["id"]) for row in rows)))
    return Audit(collection, state.generation, tuple(findings))


async def shown_vectors(connection: Connection, collection_id: int, generation: int) -> list[int]:
    """Ids of all vectors that an index at this generation must be able to find, sorted."""
    rows = await connection.fetch(QUERIES["shown_vectors"], collection_id, generation)
    return [row["vector_id"] for row in rows]


async def foreign_vectors(
    connection: Connection, collection_id: int, generation: int, ids: Sequence[int]
) -> list[int]:
    """Of the vectors that an index holds, those that this generation of it has no right to."""
    rows = await connection.fetch(QUERIES["foreign_vectors"], collection_id, list(ids), generation)
    return [row["vector_id"] for row in rows]
