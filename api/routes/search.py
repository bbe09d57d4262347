"""POST /v1/search: asks a search process; this one holds no index and no model."""

from typing import Annotated, Literal
from uuid import UUID

import anyio
from pydantic import ConfigDict, Field

from api.auth import Principal, Reader
from api.deps import WithServices
from api.errors import ProblemType
from api.job_requests import RequestModel
from api.openapi import problems
from api.routing import router as make_router
from api.views import View
from corpus import search as corpus_search
from corpus.search import MAX_K, MAX_QUERY_CHARS
from jobs.kinds import CollectionName, Text

router = make_router("search")

# A cold search process loads its model and its index before its first answer.
ANSWER_TIMEOUT_S = 45.0


class SearchFilterRequest(RequestModel):
    """Narrows a search; what is given must all hold."""

    document_ids: (
        Annotated[list[Annotated[UUID, Field(strict=False)]], Field(min_length=1, max_length=1000)]
        | None
    ) = None
    url_prefix: Annotated[Text, Field(min_length=1, max_length=2048)] | None = None
    tags: (
        Annotated[list[Annotated[Text, Field(max_length=256)]], Field(min_length=1, max_length=20)]
        | None
    ) = None


class SearchQuery(RequestModel):
    """A question to a collection."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "what survives a restart", "k": 5}]}
    )

    query: Annotated[Text, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
    collection: CollectionName = "default"
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    mode: Literal["hybrid", "vector", "text"] = "hybrid"
    filter: SearchFilterRequest | None = None


class HitDocumentView(View):
    """The document that a passage is from."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    url: str | None
    title: str | None


class HitView(View):
    """A passage: characters `start` to `end` of its document's text, under `heading`."""

    model_config = ConfigDict(from_attributes=True)

    score: float
    text: str
    chunk_id: UUID
    document: HitDocumentView
    start: int
    end: int
    heading: str


class SearchView(View):
    """Passages, best first. `stale`: a newer generation exists that was not ready in time."""

    model_config = ConfigDict(from_attributes=True)

    hits: list[HitView]
    index_generation: int
    stale: bool
    took_ms: float


@router.post("/search", responses=problems(ProblemType.NOT_FOUND))
async def search_passages(
    services: WithServices, principal: Reader, query: SearchQuery
) -> SearchView:
    """The passages of a collection that answer a query."""
    with anyio.fail_after(ANSWER_TIMEOUT_S):
        found = await services.search.search(_request(principal, query))
    return SearchView.model_validate(found)


def _request(principal: Principal, query: SearchQuery) -> corpus_search.SearchRequest:
    wanted = query.filter
    return corpus_search.SearchRequest(
        tenant_id=principal.tenant_id,
        query=query.query,
        collection=query.collection,
        k=query.k,
        mode=query.mode,
        filter=None
        if wanted is None
        else corpus_search.SearchFilter(
            document_ids=None if wanted.document_ids is None else tuple(wanted.document_ids),
            url_prefix=wanted.url_prefix,
            tags=None if wanted.tags is None else tuple(wanted.tags),
        ),
    )
