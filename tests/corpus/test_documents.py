"""Documents: versions by content, validators, deletion, and two who put the same page at once."""

import anyio
import asyncpg
import pytest

from corpus import collections, documents, purge
from corpus.collections import EmbeddingModel
from corpus.errors import (
    CollectionNotFound,
    DocumentNotFound,
    DocumentTooLarge,
    ModelMismatch,
)
from corpus.model import Page, Put, PutOutcome
from jobs.model import DEFAULT_TENANT, TenantId
from runtime.postgres import Pool

pytestmark = pytest.mark.anyio

URL = "https://example.org/a"


async def put(db: Pool, text: str, **more: str) -> Put:
    page = Page(key=URL, url=URL, text=text, **more)  # type: ignore[arg-type] # str fields only
    async with db.acquire() as connection, connection.transaction():
        return await documents.put_page(connection, DEFAULT_TENANT, "default", page)


async def test_put_tells_new_unchanged_and_changed(db: Pool) -> None:
    first = await put(db, "one", title="A")
    again = await put(db, "one")
    changed = await put(db, "two")
    back = await put(db, "one")
    assert [p.outcome for p in (first, again, changed, back)] == [
        PutOutcome.NEW,
        PutOutcome.UNCHANGED,
        PutOutcome.CHANGED,
        PutOutcome.CHANGED,
    ]
    assert {p.document_id for p in (first, again, changed, back)} == {first.document_id}
    async with db.acquire() as connection:
        found = await documents.versions(connection, DEFAULT_TENANT, first.document_id)
        text = await documents.text(connection, DEFAULT_TENANT, first.document_id, 2)
        document = await documents.get(connection, DEFAULT_TENANT, first.document_id)
        kept = await connection.fetchval("SELECT count(*) FROM contents")
    assert [version.number for version in found] == [3, 2, 1]
    assert found[0].content_hash == found[2].content_hash
    assert text == "two"
    assert document.title == "A"
    assert document.indexed_version is None
    assert kept == 2


async def test_unchanged_document_that_was_never_embedded_still_needs_it(db: Pool) -> None:
    await put(db, "one")
    assert (await put(db, "one")).needs_embedding


async def test_two_who_put_the_same_page_make_one_version_each(db: Pool) -> None:
    outcomes: list[PutOutcome] = []

    async def one(text: str) -> None:
        outcomes.append((await put(db, text)).outcome)

    async with anyio.create_task_group() as group:
        for text in ("same", "same", "same", "same"):
            group.start_soon(one, text)
    assert sorted(outcomes) == ["new", "unchanged", "unchanged", "unchanged"]


async def test_events_tell_created_changed_and_removed(db: Pool) -> None:
    made = await put(db, "one")
    await put(db, "one")
    await put(db, "two")
    async with db.acquire() as connection, connection.transaction():
        await documents.delete(connection, DEFAULT_TENANT, made.document_id)
    async with db.acquire() as connection:
        rows = await connection.fetch("SELECT type, data FROM events ORDER BY n")
    assert [row["type"] for row in rows] == [
        "document.created",
        "document.changed",
        "document.removed",
    ]
    assert {row["data"]["document_id"] for row in rows} == {str(made.document_id)}


async def test_touch_keeps_the_version_and_renews_validators(db: Pool) -> None:
    made = await put(db, "one", etag='"1"')
    async with db.acquire() as connection:
        touched = await documents.touch(connection, made.document_id, etag='"2"')
        known = await documents.validators(
            connection, DEFAULT_TENANT, "default", [URL, "https://example.org/unknown"]
        )
    assert touched.version == 1
    assert touched.outcome is PutOutcome.UNCHANGED
    assert {key: value.etag for key, value in known.items()} == {URL: '"2"'}


async def test_deleted_document_is_gone_and_its_key_is_free(db: Pool) -> None:
    made = await put(db, "one")
    async with db.acquire() as connection:
        await documents.delete(connection, DEFAULT_TENANT, made.document_id)
        with pytest.raises(DocumentNotFound):
            await documents.get(connection, DEFAULT_TENANT, made.document_id)
        with pytest.raises(DocumentNotFound):
            await documents.delete(connection, DEFAULT_TENANT, made.document_id)
        known = await documents.validators(connection, DEFAULT_TENANT, "default", [URL])
    assert known == {}
    again = await put(db, "one")
    assert again.outcome is PutOutcome.NEW
    assert again.document_id != made.document_id


async def test_deleted_collection_frees_its_name(db: Pool) -> None:
    made = await put(db, "one")
    async with db.acquire() as connection:
        assert await collections.delete(connection, DEFAULT_TENANT, "default") == 1
        with pytest.raises(CollectionNotFound):
            await collections.delete(connection, DEFAULT_TENANT, "default")
        assert await collections.list_page(connection, DEFAULT_TENANT) == []
        with pytest.raises(DocumentNotFound):
            await documents.get(connection, DEFAULT_TENANT, made.document_id)
    assert (await put(db, "one")).outcome is PutOutcome.NEW


async def test_another_tenant_sees_nothing(db: Pool) -> None:
    made = await put(db, "one")
    other = TenantId(2)
    async with db.acquire() as connection:
        with pytest.raises(DocumentNotFound):
            await documents.get(connection, other, made.document_id)
        with pytest.raises(DocumentNotFound):
            await documents.delete(connection, other, made.document_id)
        assert await documents.list_page(connection, other) == []
        assert await collections.list_page(connection, other) == []


async def test_unstorable_characters_are_replaced_one_for_one(db: Pool) -> None:
    made = await put(db, "a\x00b\ud800c 😀 中文")
    async with db.acquire() as connection:
        text = await documents.text(connection, DEFAULT_TENANT, made.document_id)
    assert text == "a\ufffdb\ufffdc 😀 中文"


async def test_endless_text_is_refused(db: Pool) -> None:
    with pytest.raises(DocumentTooLarge, match="at most"):
        await put(db, "x" * (documents.MAX_TEXT_CHARS + 1))


async def test_list_pages_by_cursor(db: Pool) -> None:
    async with db.acquire() as connection:
        for n in range(5):
            page = Page(key=f"k{n}", text=str(n), tags=("even",) if n % 2 == 0 else ())
            await documents.put_page(connection, DEFAULT_TENANT, "default", page)
        first = await documents.list_page(connection, DEFAULT_TENANT, limit=3)
        rest = await documents.list_page(connection, DEFAULT_TENANT, after=first[-1].id)
        even = await documents.list_page(connection, DEFAULT_TENANT, tag="even")
    assert [item.key for item in first + rest] == ["k0", "k1", "k2", "k3", "k4"]
    assert [item.key for item in even] == ["k0", "k2", "k4"]


async def test_second_model_is_refused(db: Pool) -> None:
    ours, other = EmbeddingModel("a", "d1", 384), EmbeddingModel("b", "d2", 384)
    async with db.acquire() as connection:
        collection_id = await collections.ensure(connection, DEFAULT_TENANT, "default")
        await collections.bind_model(connection, collection_id, ours)
        await collections.bind_model(connection, collection_id, ours)
        with pytest.raises(ModelMismatch, match="XNAI_EMBED_MODEL"):
            await collections.bind_model(connection, collection_id, other)


async def test_purge_takes_deleted_documents_and_keeps_shared_text(db: Pool) -> None:
    made = await put(db, "shared")
    async with db.acquire() as connection:
        page = Page(key="other", text="shared")
        await documents.put_page(connection, DEFAULT_TENANT, "default", page)
        await documents.delete(connection, DEFAULT_TENANT, made.document_id)
        await connection.execute("UPDATE contents SET touched_at = now() - interval '1 day'")
        await purge.purge(connection, readable_s=0)
        assert await connection.fetchval("SELECT count(*) FROM documents") == 1
        assert await connection.fetchval("SELECT count(*) FROM contents") == 1


async def test_purged_text_of_a_deleted_document_is_nowhere(db: Pool) -> None:
    made = await put(db, "a secret")
    async with db.acquire() as connection:
        await documents.delete(connection, DEFAULT_TENANT, made.document_id)
        await connection.execute("UPDATE contents SET touched_at = now() - interval '1 day'")
        await purge.purge(connection, readable_s=0)
        for table in ("documents", "versions", "contents", "editions", "chunks"):
            count = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
            assert count == 0, table


async def test_collection_name_is_checked_by_the_database_too(db: Pool) -> None:
    async with db.acquire() as connection:
        with pytest.raises(asyncpg.CheckViolationError):
            await collections.ensure(connection, DEFAULT_TENANT, "../etc")
