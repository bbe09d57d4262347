"""The records that the corpus takes and gives. Plain data: no SQL, no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

DEFAULT_COLLECTION = "default"


class PutOutcome(StrEnum):
    """What became of a text that was put."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Page:
    """A text to keep as a document. `key` identifies it in its collection: for a page, its URL."""

    key: str
    text: str
    url: str | None = None
    title: str | None = None
    tags: tuple[str, ...] = ()
    etag: str | None = None
    last_modified: str | None = None
    page_hash: str | None = None
    links: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """The result of putting a page.

    `needs_embedding` is also true of an unchanged document whose earlier embedding never finished:
    whoever puts must then enqueue an embed job, or the document would be skipped for ever.
    """

    outcome: PutOutcome
    document_id: UUID
    version: int
    needs_embedding: bool


@dataclass(frozen=True, slots=True)
class Validators:
    """What the last visit of a page left: what a conditional request sends, and where it led."""

    document_id: UUID
    etag: str | None
    last_modified: str | None
    page_hash: str | None = None
    links: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection with its counts, as a reader sees it."""

    id: int
    name: str
    documents: int
    chunks: int
    generation: int
    model: str | None
    dimensions: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Document:
    """A document as a reader sees it. `indexed_version` is what a search finds now."""

    id: UUID
    collection: str
    key: str
    url: str | None
    title: str | None
    tags: tuple[str, ...]
    version: int
    indexed_version: int | None
    chars: int
    chunks: int
    created_at: datetime
    changed_at: datetime
    fetched_at: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable text of a document."""

    number: int
    title: str | None
    content_hash: str
    chars: int
    fetched_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Text:
    """The current text of a document, for an embed job."""

    document_id: UUID
    version: int
    title: str | None
    text: str


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to store: offsets in characters into its version's text, and its vector's bytes.

    `vector` is float32, little endian, of length 1; `words` is what the full text search sees.
    """

    ordinal: int
    start_at: int
    end_at: int
    heading: str
    words: str
    vector: bytes


@dataclass(frozen=True, slots=True)
class Edition:
    """The chunks of one version, cut by one chunker."""

    id: int
    document_id: UUID
    version: int
    chunks: int
    is_complete: bool
    stored: int


@dataclass(frozen=True, slots=True)
class PendingEdition:
    """An edition that is complete and not searchable yet."""

    id: int
    document_id: UUID
    chunks: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of generations (low, high] of a collection, and the file that caches its vectors."""

    id: UUID
    low_gen: int
    high_gen: int
    vectors: int
    file_name: str
    checksum: str


@dataclass(frozen=True, slots=True)
class IndexState:
    """A collection's index in one snapshot: its generation and the segments that tile it."""

    collection_id: int
    generation: int
    dimensions: int | None
    model_digest: str | None
    model_name: str | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """Vectors read back: ids and the float32 bytes of each."""

    ids: Sequence[int]
    vectors: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way to become a document."""

    id: UUID
    collection: str
    key: str
    media_type: str
    content: bytes
    file_name: str | None = None
    title: str | None = None
    url: str | None = None
    tags: tuple[str, ...] = ()
