"""What a search asks and answers: the words between its callers and the search role."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_QUERY_CHARS = 8192
MAX_K = 50

type Mode = Literal["hybrid", "vector", "text"]


def _storable(text: str) -> str:
    if "\x00" in text:
        detail = "must not contain U+0000"
        raise ValueError(detail)
    try:
        text.encode()
    except UnicodeEncodeError:
        detail = "must not contain lone surrogates"
        raise ValueError(detail) from None
    return text


type SearchText = Annotated[str, AfterValidator(_storable)]


class SearchFilter(BaseModel):
    """Narrows a search; what is given must all hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    document_ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=1000)] | None = None
    url_prefix: Annotated[SearchText, Field(min_length=1, max_length=2048)] | None = None
    tags: (
        Annotated[
            tuple[Annotated[SearchText, Field(max_length=256)], ...],
            Field(min_length=1, max_length=20),
        ]
        | None
    ) = None


class SearchRequest(BaseModel):
    """A search of one tenant's collection."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant_id: Annotated[int, Field(ge=0)]
    query: Annotated[SearchText, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
    collection: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = "default"
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    mode: Mode = "hybrid"
    filter: SearchFilter | None = None


class HitDocument(BaseModel):
    """The document that a passage is from."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    url: str | None
    title: str | None


class Hit(BaseModel):
    """A passage: characters [start, end) of its document's text, under `heading`.

    `score` compares hits of one answer: the cosine in mode `vector`, a share of the best text hit
    in mode `text`, their weighted sum in mode `hybrid`.
    """

    model_config = ConfigDict(frozen=True)

    score: float
    text: str
    chunk_id: UUID
    document: HitDocument
    start: int
    end: int
    heading: str


class SearchResponse(BaseModel):
    """Passages, best first. `stale`: a newer generation exists that was not ready in time."""

    model_config = ConfigDict(frozen=True)

    hits: tuple[Hit, ...]
    index_generation: int
    stale: bool
    took_ms: float
