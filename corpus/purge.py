"""Physical removal of what no search shows any more. Safe to run anywhere, any time, by any number.

Deletion hides at once and leaves the rows; this takes them, in portions, each its own transaction.
"""

from dataclasses import dataclass

from corpus.collections import QUERIES
from runtime.postgres import Connection

# Longer than any search takes: what it pinned may still be read this long.
READABLE_S = 600.0
CONTENT_AGE_S = 3600.0
SEGMENT_AGE_S = 86_400.0
SERVER_AGE_S = 3600.0
VERSIONS_KEPT = 20
PORTION = 200


@dataclass(frozen=True, slots=True)
class Purged:
    """How many rows of each table went."""

    documents: int
    editions: int
    versions: int
    contents: int

    @property
    def more(self) -> bool:
        """Whether another call is likely to find something."""
        return PORTION in {self.documents, self.editions}


async def purge(connection: Connection, *, readable_s: float = READABLE_S) -> Purged:
    """Remove a portion of what is dead; call it again while it finds something.

    Call it outside of a transaction: each statement commits by itself.
    """
    editions = await connection.fetch(QUERIES["purge_editions"], readable_s, PORTION)
    documents = await connection.fetch(QUERIES["purge_documents"], readable_s, PORTION)
    await connection.fetch(QUERIES["purge_collections"], readable_s)
    versions = await connection.fetch(QUERIES["purge_versions"], VERSIONS_KEPT, readable_s)
    contents = await connection.fetch(QUERIES["purge_contents"], max(CONTENT_AGE_S, readable_s))
    await connection.fetch(QUERIES["purge_segments"], SEGMENT_AGE_S)
    await connection.fetch(QUERIES["purge_search_servers"], SERVER_AGE_S)
    return Purged(len(documents), len(editions), len(versions), len(contents))
