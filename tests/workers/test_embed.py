"""The embed handler on real ledger rows and the real model: effects once, failures of their own."""

from collections.abc import Callable, Sequence
from typing import override

import numpy as np
import pytest

from corpus import chunks, documents
from engines.embed import Embedder, Embeddings
from jobs.errors import Fail, StaleToken
from jobs.model import DEFAULT_TENANT, JsonObject
from jobs.outcomes import Completed
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk, embedder
from workers.handlers import embed

pytestmark = [pytest.mark.anyio, pytest.mark.model]

LONG = "\n\n".join(
    f"# Section {n}\n\nValkey keeps wake-ups and Postgres decides about job number {n}. " * 8
    for n in range(12)
)


@pytest.fixture
def desk(db: Pool, redis: Client, settings: Settings) -> Desk:
    return Desk(db, redis, settings)


def ids(*puts: object) -> JsonObject:
    return {"document_ids": [str(put.document_id) for put in puts]}  # type: ignore[attr-defined]


async def test_chunks_are_slices_of_their_document_and_vectors_have_length_one(desk: Desk) -> None:
    put = await desk.put("doc", LONG)
    result = await desk.work("embed", ids(put))
    async with desk.postgres.acquire() as connection:
        rows = await connection.fetch("SELECT * FROM chunks ORDER BY ordinal")
    assert result["chunks"] == len(rows) > 10
    assert result["dimensions"] == 384
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    for row in rows:
        passage = LONG[row["start_at"] : row["end_at"]]
        assert passage.strip() == passage != ""
        assert row["heading"].startswith("Section ")
    vectors = np.frombuffer(b"".join(row["vector"] for row in rows), "<f4").reshape(-1, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_texts_give_their_vectors_and_store_nothing(desk: Desk) -> None:
    texts = ["a cat", "", "a kitten", "the stock market"]
    result = await desk.work("embed", {"texts": texts})
    vectors = np.asarray(result["vectors"])
    assert vectors.shape == (4, 384)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[3] + 0.3
    assert not vectors[1].any()
    assert await desk.claim("index") is None
    async with desk.postgres.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM collections") == 0


async def test_each_embed_has_an_index_job_of_its_own_in_the_family(desk: Desk) -> None:
    put = await desk.put("doc", "Something to find.")
    run = await desk.claimed("embed", ids(put))
    await desk.finish(run)
    follow_up = await desk.claim("index")
    assert follow_up is not None
    assert follow_up.job.parent_id == run.job.id
    assert follow_up.payload.document_ids == (put.document_id,)


async def test_second_run_after_a_crash_changes_nothing_twice(desk: Desk) -> None:
    put = await desk.put("doc", LONG)
    first = await embed.handle(await desk.claimed("embed", ids(put)))
    async with desk.postgres.acquire() as connection:
        before = await connection.fetch("SELECT * FROM chunks ORDER BY vector_id")
    second = await embed.handle(await desk.claimed("embed", ids(put)))
    async with desk.postgres.acquire() as connection:
        after = await connection.fetch("SELECT * FROM chunks ORDER BY vector_id")
    assert isinstance(first, Completed)
    assert first == second
    assert before == after


async def test_crash_between_windows_embeds_only_what_is_missing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "WINDOW", 5)
    put = await desk.put("doc", LONG)
    real, windows = chunks.store, list[object]()

    async def dies_at_the_second(*args: object) -> None:
        if len(windows) == 1:
            raise ConnectionResetError("killed")
        windows.append(args)
        await real(*args)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(chunks, "store", dies_at_the_second)
    with pytest.raises(ConnectionResetError):
        await embed.handle(await desk.claimed("embed", ids(put)))
    monkeypatch.setattr(chunks, "store", real)
    async with desk.postgres.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM chunks") == 5
        assert await connection.fetchval("SELECT completed_at FROM editions") is None

    seen: list[str] = []
    spy = _Spy(seen.append)
    desk.engines["embed"] = spy
    result = await desk.work("embed", ids(put))
    assert result["chunks"] == len(seen) + 5
    async with desk.postgres.acquire() as connection:
        assert await connection.fetchval("SELECT completed_at FROM editions") is not None


async def test_zombie_stores_nothing(desk: Desk) -> None:
    put = await desk.put("doc", LONG)
    run = await desk.claimed("embed", ids(put))
    await desk.end(run, Completed({}))
    with pytest.raises(StaleToken):
        await embed.handle(run)
    async with desk.postgres.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM chunks") == 0


async def test_one_document_fails_alone(desk: Desk) -> None:
    good = await desk.put("good", "A page like any other.")
    bad = await desk.put("bad", "This one is poisoned.")

    def choke(text: str) -> None:
        if "poisoned" in text:
            raise RuntimeError("native error")

    desk.engines["embed"] = _Spy(choke)
    run = await desk.claimed("embed", ids(good, bad))
    result = await desk.finish(run)
    assert result["documents"] == 1
    assert result["failed"] == [
        {
            "document_id": str(bad.document_id),
            "type": "embedding_failed",
            "detail": "native error",
        }
    ]
    follow_up = await desk.claim("index")
    assert follow_up is not None
    assert follow_up.payload.document_ids == (good.document_id,)


async def test_job_fails_when_every_document_does(desk: Desk) -> None:
    def choke(_: str) -> None:
        raise RuntimeError("native error")

    bad = await desk.put("bad", "This one is poisoned.")
    desk.engines["embed"] = _Spy(choke)
    with pytest.raises(Fail) as caught:
        await embed.handle(await desk.claimed("embed", ids(bad)))
    assert caught.value.type == "embedding_failed"


async def test_another_model_is_refused(desk: Desk) -> None:
    put = await desk.put("doc", "Some text.")
    await desk.work("embed", ids(put))
    other = _Spy(lambda _: None)
    other.digest = "0" * 64
    desk.engines["embed"] = other
    with pytest.raises(Fail, match="XNAI_EMBED_MODEL") as caught:
        await embed.handle(await desk.claimed("embed", ids(put)))
    assert caught.value.type == "model_mismatch"


async def test_deleted_and_foreign_documents_are_named_as_missing(desk: Desk) -> None:
    kept = await desk.put("kept", "Text.")
    gone = await desk.put("gone", "Text of another.")
    elsewhere = await desk.put("kept", "Text.", collection="other")
    async with desk.postgres.acquire() as connection:
        await documents.delete(connection, DEFAULT_TENANT, gone.document_id)
    result = await desk.work("embed", ids(kept, gone, elsewhere))
    assert result["documents"] == 1
    assert result["missing"] == [str(gone.document_id), str(elsewhere.document_id)]


async def test_empty_document_has_a_complete_edition_without_chunks(desk: Desk) -> None:
    put = await desk.put("empty", "  \n ")
    assert (await desk.work("embed", ids(put)))["chunks"] == 0
    async with desk.postgres.acquire() as connection:
        assert await connection.fetchval("SELECT completed_at FROM editions") is not None


async def test_unknown_collection_is_a_typed_failure(desk: Desk) -> None:
    put = await desk.put("doc", "Text.")
    payload = {**ids(put), "collection": "nowhere"}
    with pytest.raises(Fail) as caught:
        await embed.handle(await desk.claimed("embed", payload))
    assert caught.value.type == "collection_not_found"


async def test_missing_model_is_a_typed_failure(desk: Desk, settings: Settings) -> None:
    put = await desk.put("doc", "Text.")
    nowhere = settings.model_copy(update={"embed_model": str(settings.data_dir / "nothing")})
    run = await Desk(desk.postgres, desk.redis, nowhere, {}).claimed("embed", ids(put))
    with pytest.raises(Fail) as caught:
        await embed.handle(run)
    assert caught.value.type.startswith("model_")


class _Spy(Embedder):
    """The real model, with an ear at its input."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        real = embedder()
        self.__dict__.update(real.__dict__)
        self._hear = hear

    @override
    def embed(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        for text in texts:
            self._hear(text)
        return super().embed(texts, on_progress=on_progress)
