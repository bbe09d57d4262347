"""/v1/collections: the tenant's named sets of documents."""

from datetime import datetime
from typing import Annotated

from fastapi import Path, Response, status
from pydantic import ConfigDict

from api import paging
from api.auth import Reader, Submitter
from api.deps import LIST_DEFAULT, Cursor, Limit, WithAudit, WithServices
from api.errors import ProblemType
from api.openapi import problems
from api.routing import router as make_router
from api.views import Page, View
from corpus import collections
from jobs.kinds import CollectionName

router = make_router("collections")

NamePath = Annotated[CollectionName, Path(description="The collection's name.")]


class CollectionView(View):
    """A collection and what a search finds in it."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    documents: int
    chunks: int
    generation: int
    model: str | None
    dimensions: int | None
    created_at: datetime


@router.get("/collections")
async def list_collections(
    services: WithServices, principal: Reader, cursor: Cursor = None, limit: Limit = LIST_DEFAULT
) -> Page[CollectionView]:
    """The collections, by name."""
    after = paging.decode("collections", cursor, str)
    async with services.connection() as connection:
        found = await collections.list_page(
            connection, principal.tenant_id, after=after, limit=limit
        )
    return Page[CollectionView](
        data=[CollectionView.model_validate(row) for row in found],
        next_cursor=paging.next_cursor("collections", found, limit, lambda row: row.name),
    )


@router.delete(
    "/collections/{name}",
    status_code=status.HTTP_204_NO_CONTENT,
    response_class=Response,
    responses=problems(ProblemType.NOT_FOUND),
)
async def delete_collection(
    services: WithServices, principal: Submitter, audit: WithAudit, name: NamePath
) -> None:
    """Hide a collection and its documents from every search that starts after the answer."""
    async with services.transaction() as connection:
        await collections.delete(connection, principal.tenant_id, name)
        await audit.record(connection, "collection.deleted", name)
