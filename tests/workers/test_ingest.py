"""Ingest jobs: an upload becomes a document once, whatever is in it."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from corpus import uploads
from corpus.model import Upload
from jobs.errors import Fail
from jobs.model import DEFAULT_TENANT, JsonObject
from runtime.ids import uuid7
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk
from workers.handlers.crawl import Tools

pytestmark = pytest.mark.anyio


@pytest.fixture
async def desk(db: Pool, redis: Client, settings: Settings) -> AsyncIterator[Desk]:
    desk = Desk(db, redis, settings)
    yield desk
    tools = desk.engines.get("crawl")
    if isinstance(tools, Tools):
        await tools.aclose()


async def upload(desk: Desk, content: bytes, media_type: str, name: str) -> UUID:
    new = Upload(uuid7(), "default", name, media_type, content, file_name=name, tags=("t",))
    async with desk.postgres.acquire() as connection:
        await uploads.put(connection, DEFAULT_TENANT, new)
    return new.id


async def ingest(desk: Desk, content: bytes, media_type: str, name: str) -> JsonObject:
    upload_id = await upload(desk, content, media_type, name)
    return await desk.work("ingest", {"upload_id": str(upload_id)})


async def test_a_markdown_file_becomes_a_document_and_its_upload_goes(desk: Desk) -> None:
    result = await ingest(desk, "# Tee\n\nGrüner Tee, 绿茶 🍵.".encode(), "text/markdown", "tee.md")
    assert (result["outcome"], result["version"]) == ("new", 1)
    text = await desk.postgres.fetchval("SELECT text FROM contents")
    assert "绿茶 🍵" in text
    assert await desk.postgres.fetchval("SELECT count(*) FROM uploads") == 0
    assert await desk.claim("embed") is not None


async def test_the_same_file_again_is_unchanged(desk: Desk) -> None:
    for outcome in ("new", "unchanged"):
        assert (await ingest(desk, b"Tea.", "text/plain", "tea.txt"))["outcome"] == outcome


@pytest.mark.parametrize(
    ("content", "media_type", "name"),
    [
        (b"", "text/plain", "empty.txt"),
        (bytes(range(256)) * 8, "text/html", "binary.html"),
        (b"%PDF-1.7\nthis is no PDF", "application/pdf", "broken.pdf"),
    ],
)
async def test_what_holds_no_text_is_a_typed_failure(
    desk: Desk, content: bytes, media_type: str, name: str
) -> None:
    with pytest.raises(Fail) as raised:
        await ingest(desk, content, media_type, name)
    assert raised.value.type in {"empty", "not_text", "parse_failed"}


async def test_an_upload_that_is_gone_is_a_typed_failure(desk: Desk) -> None:
    with pytest.raises(Fail) as raised:
        await desk.work("ingest", {"upload_id": str(uuid7())})
    assert raised.value.type == "upload_not_found"
