"""Collections: a tenant's named sets of documents, each bound to one model by its first vectors."""

from dataclasses import dataclass
from typing import cast

from corpus.errors import CollectionNotFound, ModelMismatch
from corpus.model import Collection
from jobs import events
from jobs.events import NewEvent
from jobs.model import TenantId
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("corpus")


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """What vectors were made by: `digest` names the model's files, vectors of two never mix."""

    name: str
    digest: str
    dimensions: int


async def ensure(connection: Connection, tenant_id: TenantId, name: str) -> int:
    """The id of the collection, made when there is none yet."""
    while True:
        found = await find(connection, tenant_id, name)
        if found is not None:
            return found
        made = await connection.fetchval(QUERIES["insert_collection"], tenant_id, name)
        if made is not None:
            return cast("int", made)


async def find(connection: Connection, tenant_id: TenantId, name: str) -> int | None:
    """The id of the collection, or None."""
    found: int | None = await connection.fetchval(QUERIES["find_collection"], tenant_id, name)
    return found


async def list_page(
    connection: Connection, tenant_id: TenantId, *, after: str | None = None, limit: int = 100
) -> list[Collection]:
    """Collections by name, those after `after`, with the counts of what a search can find."""
    rows = await connection.fetch(QUERIES["list_collections"], tenant_id, after, limit)
    return [
        Collection(
            id=row["id"],
            name=row["name"],
            documents=row["documents"],
            chunks=row["chunks"],
            generation=row["generation"],
            model=row["model_name"],
            dimensions=row["dimensions"],
            created_at=row["created_at"],
        )
        for row in rows
    ]


async def bind_model(connection: Connection, collection_id: int, model: EmbeddingModel) -> None:
    """Bind the collection to a model, or check that it is bound to it; raises ModelMismatch."""
    row = await connection.fetchrow(QUERIES["bound_model"], collection_id)
    if row is not None and row["model_digest"] is None:
        await connection.fetch(
            QUERIES["bind_model"], collection_id, model.name, model.digest, model.dimensions
        )
        row = await connection.fetchrow(QUERIES["bound_model"], collection_id)
    if row is None:
        raise CollectionNotFound(str(collection_id))
    if (row["model_digest"], row["dimensions"]) != (model.digest, model.dimensions):
        bound = f"{row['model_name']} ({row['model_digest'][:12]}, {row['dimensions']})"
        offered = f"{model.name} ({model.digest[:12]}, {model.dimensions})"
        raise ModelMismatch(row["name"], bound, offered)


async def delete(connection: Connection, tenant_id: TenantId, name: str) -> int:
    """Hide a collection and all its documents from the commit on; returns how many documents.

    The name is free at once: a new collection of that name starts empty. Raises CollectionNotFound.
    """
    collection_id = await connection.fetchval(QUERIES["delete_collection"], tenant_id, name)
    if collection_id is None:
        raise CollectionNotFound(name)
    rows = await connection.fetch(QUERIES["delete_documents_of"], collection_id)
    await events.add(
        connection,
        [
            NewEvent(
                tenant_id,
                "document.removed",
                {"document_id": str(row["id"]), "url": row["url"], "collection": name},
            )
            for row in rows
        ],
    )
    return len(rows)
