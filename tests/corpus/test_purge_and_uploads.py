"""Uploads are bounded and go; what is dead goes, and what a search may still read stays."""

import pytest

from corpus import purge, uploads
from corpus.errors import UploadNotFound, UploadsFull, UploadTooLarge
from corpus.model import Upload
from jobs.model import DEFAULT_TENANT, TenantId
from runtime.ids import uuid7
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk

pytestmark = pytest.mark.anyio


def upload(content: bytes = b"%PDF") -> Upload:
    return Upload(
        id=uuid7(),
        collection="default",
        key="a.pdf",
        media_type="application/pdf",
        content=content,
        tags=("x",),
    )


async def test_upload_comes_back_as_it_was_and_goes_when_ingested(db: Pool) -> None:
    kept = upload()
    async with db.acquire() as connection:
        await uploads.put(connection, DEFAULT_TENANT, kept)
        assert await uploads.get(connection, DEFAULT_TENANT, kept.id) == kept
        with pytest.raises(UploadNotFound):
            await uploads.get(connection, TenantId(2), kept.id)
        await uploads.delete(connection, DEFAULT_TENANT, kept.id)
        await uploads.delete(connection, DEFAULT_TENANT, kept.id)
        with pytest.raises(UploadNotFound):
            await uploads.get(connection, DEFAULT_TENANT, kept.id)


async def test_uploads_are_bounded_one_by_one_and_together(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 10)
    monkeypatch.setattr(uploads, "MAX_WAITING_BYTES", 15)
    async with db.acquire() as connection:
        with pytest.raises(UploadTooLarge, match="at most 10"):
            await uploads.put(connection, DEFAULT_TENANT, upload(b"x" * 11))
        await uploads.put(connection, DEFAULT_TENANT, upload(b"x" * 10))
        with pytest.raises(UploadsFull):
            await uploads.put(connection, DEFAULT_TENANT, upload(b"x" * 6))


async def test_forgotten_uploads_expire(db: Pool) -> None:
    old, young = upload(), upload()
    async with db.acquire() as connection:
        await uploads.put(connection, DEFAULT_TENANT, old)
        await uploads.put(connection, DEFAULT_TENANT, young)
        await connection.execute(
            "UPDATE uploads SET created_at = now() - interval '8 days' WHERE id = $1", old.id
        )
        assert await uploads.expire(connection) == 1
        assert (await uploads.get(connection, DEFAULT_TENANT, young.id)).id == young.id


@pytest.mark.model
async def test_replaced_chunks_go_after_their_time_and_shown_ones_never(
    db: Pool, redis: Client, settings: Settings
) -> None:
    desk = Desk(db, redis, settings)
    await desk.publish({"doc": "The first text."})
    await desk.publish({"doc": "The second text."})
    async with db.acquire() as connection:
        assert (await purge.purge(connection)).editions == 0
        assert (await purge.purge(connection, readable_s=0)).editions == 1
        rows = await connection.fetch("SELECT version FROM editions")
        assert [row["version"] for row in rows] == [2]
        assert await connection.fetchval("SELECT count(*) FROM chunks") == 1


async def test_history_of_a_document_is_bounded(
    db: Pool, redis: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "VERSIONS_KEPT", 2)
    desk = Desk(db, redis, settings, {})
    for n in range(4):
        await desk.put("doc", f"text {n}")
    async with db.acquire() as connection:
        assert (await purge.purge(connection, readable_s=0)).versions == 2
        rows = await connection.fetch("SELECT number FROM versions ORDER BY number")
    assert [row["number"] for row in rows] == [3, 4]
