"""Documents and their versions: what a crawl or an upload puts, and readers list.

Every function joins the caller's transaction. A text's hash is stored with its version, never
before it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast
from uuid import UUID

from asyncpg import Record

from corpus import collections
from corpus.collections import QUERIES
from corpus.errors import DocumentNotFound, DocumentTooLarge
from corpus.model import Document, Page, Put, PutOutcome, Text, Validators, Version
from jobs import events
from jobs.events import NewEvent
from jobs.model import TenantId
from runtime.ids import uuid7
from runtime.postgres import Connection

MAX_TEXT_CHARS = 10_000_000
MAX_TITLE_CHARS = 1000

_EVENTS = {PutOutcome.NEW: "created", PutOutcome.CHANGED: "changed"}
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


async def put_page(connection: Connection, tenant_id: TenantId, collection: str, page: Page) -> Put:
    """Keep a page: a new document, a new version of a known one, or nothing but its validators.

    Idempotent by content. Writes `document.created` and `document.changed`. Locks the document
    until the commit. Raises DocumentTooLarge.
    """
    text = _storable(page.text)
    if len(text) > MAX_TEXT_CHARS:
        detail = f"{page.key}: {len(text)} characters, at most {MAX_TEXT_CHARS} are kept: split it"
        raise DocumentTooLarge(detail)
    collection_id = await collections.ensure(connection, tenant_id, collection)
    document_id, version = await _lock(connection, tenant_id, collection_id, page)
    digest = hashlib.sha256(text.encode()).digest()
    if version and digest == await connection.fetchval(
        QUERIES["current_hash"], document_id, version
    ):
        waits = await needs_embedding(connection, document_id)
        return Put(PutOutcome.UNCHANGED, document_id, version, waits)
    content_id = await connection.fetchval(
        QUERIES["keep_content"], tenant_id, digest, text, len(text)
    )
    title = _title(page)
    await connection.execute(QUERIES["add_version"], document_id, version + 1, content_id, title)
    outcome = PutOutcome.CHANGED if version else PutOutcome.NEW
    data = {"document_id": str(document_id), "url": page.url, "collection": collection}
    await events.add(connection, [NewEvent(tenant_id, f"document.{_EVENTS[outcome]}", data)])
    return Put(outcome, document_id, version + 1, needs_embedding=True)


async def needs_embedding(connection: Connection, document_id: UUID) -> bool:
    """Whether the document's current version is not searchable yet."""
    return bool(await connection.fetchval(QUERIES["needs_embedding"], document_id))


async def validators(
    connection: Connection, tenant_id: TenantId, collection: str, keys: Sequence[str]
) -> Mapping[str, Validators]:
    """What conditional requests for these keys (URLs) should send; unknown keys are left out."""
    rows = await connection.fetch(QUERIES["validators"], tenant_id, collection, list(keys))
    return {row["key"]: _validators(row) for row in rows}


async def touch(
    connection: Connection,
    document_id: UUID,
    *,
    etag: str | None = None,
    last_modified: str | None = None,
    page_hash: str | None = None,
    links: Sequence[str] | None = None,
) -> Put:
    """Note that the source still has what is kept; raises DocumentNotFound."""
    version = await connection.fetchval(
        QUERIES["touch_document"], document_id, etag, last_modified, page_hash, links
    )
    if version is None:
        raise DocumentNotFound(document_id)
    waits = await needs_embedding(connection, document_id)
    return Put(PutOutcome.UNCHANGED, document_id, version, waits)


async def list_page(
    connection: Connection,
    tenant_id: TenantId,
    *,
    collection: str | None = None,
    tag: str | None = None,
    url: str | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[Document]:
    """Documents in order of creation, those after `after`."""
    rows = await connection.fetch(
        QUERIES["list_documents"], tenant_id, collection, tag, url, after, limit
    )
    return [_document(row) for row in rows]


async def get(connection: Connection, tenant_id: TenantId, document_id: UUID) -> Document:
    """One document; raises DocumentNotFound."""
    row = await connection.fetchrow(QUERIES["get_document"], tenant_id, document_id)
    if row is None:
        raise DocumentNotFound(document_id)
    return _document(row)


async def versions(
    connection: Connection,
    tenant_id: TenantId,
    document_id: UUID,
    *,
    before: int | None = None,
    limit: int = 100,
) -> list[Version]:
    """A document's versions, newest first, those below `before`; raises DocumentNotFound."""
    rows = await connection.fetch(QUERIES["list_versions"], tenant_id, document_id, before, limit)
    if not rows:
        await get(connection, tenant_id, document_id)
    return [
        Version(
            number=row["number"],
            title=row["title"],
            content_hash=row["hash"].hex(),
            chars=row["chars"],
            fetched_at=row["fetched_at"],
            created_at=row["created_at"],
        )
        for row in rows
    ]


async def text(
    connection: Connection, tenant_id: TenantId, document_id: UUID, number: int | None = None
) -> str:
    """The text of a version, by default the current one; raises DocumentNotFound."""
    found = await connection.fetchval(QUERIES["version_text"], tenant_id, document_id, number)
    if found is None:
        raise DocumentNotFound(document_id)
    return cast("str", found)


async def texts(
    connection: Connection, collection_id: int, document_ids: Iterable[UUID]
) -> list[Text]:
    """The current texts of those documents that are in the collection and not deleted."""
    rows = await connection.fetch(QUERIES["texts_to_embed"], collection_id, list(document_ids))
    return [Text(row["id"], row["version"], row["title"], row["text"]) for row in rows]


async def delete(connection: Connection, tenant_id: TenantId, document_id: UUID) -> None:
    """Hide a document from every search that starts after the commit; raises DocumentNotFound.

    Its rows go when `purge` next runs. Writes `document.removed`.
    """
    row = await connection.fetchrow(QUERIES["delete_document"], tenant_id, document_id)
    if row is None:
        raise DocumentNotFound(document_id)
    data = {"document_id": str(document_id), "url": row["url"], "collection": row["collection"]}
    await events.add(connection, [NewEvent(tenant_id, "document.removed", data)])


async def _lock(
    connection: Connection, tenant_id: TenantId, collection_id: int, page: Page
) -> tuple[UUID, int]:
    row = await connection.fetchrow(
        QUERIES["lock_document"],
        uuid7(),
        tenant_id,
        collection_id,
        _storable(page.key),
        page.url,
        _title(page),
        [_storable(tag) for tag in page.tags],
        page.etag,
        page.last_modified,
        page.page_hash,
        page.links,
    )
    return cast("Record", row)["id"], cast("Record", row)["version"]


def _validators(row: Record) -> Validators:
    return Validators(
        document_id=row["id"],
        etag=row["etag"],
        last_modified=row["last_modified"],
        page_hash=row["page_hash"],
        links=None if row["links"] is None else tuple(row["links"]),
    )


def _title(page: Page) -> str | None:
    return _storable(page.title)[:MAX_TITLE_CHARS] if page.title else None


def _storable(text_: str) -> str:
    """As many characters, without those that Postgres cannot keep: U+0000 and lone surrogates."""
    return _NOT_STORABLE.sub("\ufffd", text_)


def _document(row: Record) -> Document:
    return Document(
        id=row["id"],
        collection=row["collection"],
        key=row["key"],
        url=row["url"],
        title=row["title"],
        tags=tuple(row["tags"]),
        version=row["version"],
        indexed_version=row["indexed_version"],
        chars=row["chars"],
        chunks=row["chunks"],
        created_at=row["created_at"],
        changed_at=row["changed_at"],
        fetched_at=row["fetched_at"],
    )
