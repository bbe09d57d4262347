"""The search role, asked through its client: generations, deletions, other hosts, bad input."""

import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest

from corpus import collections, documents, generations, search_servers
from corpus.errors import CollectionNotFound, SearchRefused, SearchUnavailable
from corpus.search import SearchFilter, SearchRequest, SearchResponse
from corpus.search_client import SearchClient
from jobs.model import DEFAULT_TENANT
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk
from workers import search_index, search_segments
from workers.search_index import SearchIndexes
from workers.search_query import QueryEmbedder, Searcher
from workers.search_server import run_search_server

pytestmark = [pytest.mark.anyio, pytest.mark.model]

TEXTS = {
    "https://example.org/cats": "Cats sleep for most of the day and hunt at dusk.",
    "https://example.org/rain": "Rain falls on the western coast for most of the winter.",
    "https://example.org/jobs": "A job that was accepted survives a crash of its worker.",
}


@pytest.fixture
def desk(db: Pool, redis: Client, settings: Settings) -> Desk:
    return Desk(db, redis, settings)


@asynccontextmanager
async def searching(desk: Desk) -> AsyncIterator[Searcher]:
    """A search process' inside, on the desk's data directory."""
    async with anyio.create_task_group() as owner:
        indexes = SearchIndexes(desk.postgres, desk.settings.data_dir, owner, threads=1)
        embedder = QueryEmbedder(lambda: desk.engines["embed"])  # type: ignore[arg-type,return-value]
        yield Searcher(desk.postgres, indexes, embedder, threads=1)
        owner.cancel_scope.cancel()


def ask(query: str, **more: Any) -> SearchRequest:
    return SearchRequest(tenant_id=DEFAULT_TENANT, query=query, **more)


def urls(response: SearchResponse) -> list[str]:
    return [str(hit.document.url).rsplit("/", 1)[-1] for hit in response.hits]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_each_mode_finds_the_passage_first(desk: Desk, mode: str) -> None:
    await desk.publish(TEXTS)
    async with searching(desk) as searcher:
        found = await searcher.search(ask("what survives a crash of the worker?", mode=mode))
    assert urls(found)[0] == "jobs"
    best = found.hits[0]
    assert best.text == TEXTS["https://example.org/jobs"][best.start : best.end]
    assert best.document.title == "jobs"
    assert 0 < best.score <= 1
    assert not found.stale
    assert found.index_generation == 1


async def test_index_job_that_succeeded_is_visible_to_the_next_search(desk: Desk) -> None:
    async with searching(desk) as searcher:
        for n in range(4):
            await desk.publish({f"doc{n}": f"The {n}th page is about zebras number {n}."})
            found = await searcher.search(ask("zebras"))
            assert (len(found.hits), found.index_generation, found.stale) == (n + 1, n + 1, False)


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
async def test_deletion_hides_at_once_though_nobody_tells_the_search(desk: Desk, mode: str) -> None:
    ids = await desk.publish(TEXTS)
    async with searching(desk) as searcher:
        before = await searcher.search(ask("cats", mode=mode))
        async with desk.postgres.acquire() as connection:
            await documents.delete(connection, DEFAULT_TENANT, ids[0])
        after = await searcher.search(ask("cats", mode=mode))
    assert urls(before)[0] == "cats"
    assert "cats" not in urls(after)
    assert after.index_generation == before.index_generation


async def test_deleted_collection_is_not_found_and_starts_empty_again(desk: Desk) -> None:
    await desk.publish(TEXTS, collection="pages")
    async with searching(desk) as searcher:
        assert (await searcher.search(ask("cats", collection="pages"))).hits
        async with desk.postgres.acquire() as connection:
            await collections.delete(connection, DEFAULT_TENANT, "pages")
        with pytest.raises(CollectionNotFound):
            await searcher.search(ask("cats", collection="pages"))
        await desk.put("new", "Nothing indexed yet.", collection="pages")
        assert (await searcher.search(ask("cats", collection="pages"))).hits == ()


async def test_searches_reach_past_many_deleted_chunks(desk: Desk) -> None:
    ids = await desk.publish({f"doc{n}": f"The report on zebras, part {n}." for n in range(130)})
    async with desk.postgres.acquire() as connection:
        for document_id in ids[:-1]:
            await documents.delete(connection, DEFAULT_TENANT, document_id)
    async with searching(desk) as searcher:
        found = await searcher.search(ask("zebras", mode="vector", k=3))
    assert [hit.document.id for hit in found.hits] == [ids[-1]]


async def test_new_version_replaces_the_old_in_one_step(desk: Desk) -> None:
    """A concurrent searcher sees one of the two at every moment, never both, never neither."""
    versions = [f"The lighthouse keeper counts ships, edition {n}." for n in range(6)]
    await desk.publish({"doc": versions[0]})
    seen: list[str] = []

    async with searching(desk) as searcher:
        await searcher.search(ask("lighthouse"))

        async def look() -> None:
            while True:
                found = await searcher.search(ask("lighthouse keeper ships"))
                assert len(found.hits) == 1, [hit.text for hit in found.hits]
                seen.append(found.hits[0].text)

        async with anyio.create_task_group() as group:
            group.start_soon(look)
            for text in versions[1:]:
                await desk.publish({"doc": text})
                # At least one look lies between two versions.
                looks = len(seen)
                with anyio.fail_after(20):
                    while len(seen) == looks:
                        await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        last = await searcher.search(ask("lighthouse"))
    assert [hit.text for hit in last.hits] == [versions[-1]]
    assert set(seen) <= set(versions)
    order = [versions.index(text) for text in seen]
    assert order == sorted(order)


async def test_other_data_directory_builds_its_own_files_and_answers_alike(
    desk: Desk, tmp_path: Path
) -> None:
    await desk.publish(TEXTS)
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = desk.on(desk.settings.model_copy(update={"data_dir": other}))
    async with searching(desk) as here, searching(elsewhere) as there:
        for query in ("cats", "western weather", "crash"):
            mine, theirs = await here.search(ask(query)), await there.search(ask(query))
            assert mine.hits == theirs.hits
            assert not theirs.stale
    assert len(list(other.glob("index/*/*.seg"))) == 1


@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
async def test_unusable_segment_is_rebuilt_from_postgres(
    desk: Desk, settings: Settings, damage: str
) -> None:
    await desk.publish(TEXTS)
    (path,) = settings.data_dir.glob("index/*/*.seg")
    content = bytearray(path.read_bytes())
    if damage == "removed":
        shutil.rmtree(settings.data_dir / "index")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-100] ^= 1
        path.write_bytes(content)
    async with searching(desk) as searcher:
        found = await searcher.search(ask("cats", mode="vector"))
    assert urls(found)[0] == "cats"
    assert not found.stale
    assert len(list(settings.data_dir.glob("index/*/*.local.seg"))) == 1


async def test_slow_catch_up_answers_with_the_old_generation_marked_stale(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.publish({"a": "Zebras graze."})
    released = anyio.Event()
    real = search_segments.load

    async def slow(*args: Any, **more: Any) -> Any:
        await released.wait()
        return await real(*args, **more)

    async with searching(desk) as searcher:
        assert len((await searcher.search(ask("zebras"))).hits) == 1
        monkeypatch.setattr(search_segments, "load", slow)
        monkeypatch.setattr(search_index, "PATIENCE_S", 0.05)
        await desk.publish({"b": "Zebras run."})
        stale = await searcher.search(ask("zebras"))
        assert (stale.stale, stale.index_generation, len(stale.hits)) == (True, 1, 1)
        released.set()
        monkeypatch.setattr(search_index, "PATIENCE_S", 20)
        fresh = await searcher.search(ask("zebras"))
    assert (fresh.stale, fresh.index_generation, len(fresh.hits)) == (False, 2, 2)


async def test_failing_catch_up_keeps_the_process_answering(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.publish({"a": "Zebras graze."})

    async def fails(*_: object, **__: object) -> None:
        raise search_segments.IndexDiskError(Path("x"), OSError(28, "No space left on device"))

    async with searching(desk) as searcher:
        await searcher.search(ask("zebras"))
        monkeypatch.setattr(search_segments, "load", fails)
        await desk.publish({"b": "Zebras run."})
        assert (await searcher.search(ask("zebras"))).stale
        monkeypatch.undo()
        assert not (await searcher.search(ask("zebras"))).stale


async def test_merged_segments_are_adopted_without_a_new_generation(desk: Desk) -> None:
    await desk.publish({"a": "Zebras graze."})
    await desk.publish({"b": "Zebras run."})
    async with searching(desk) as searcher:
        before = await searcher.search(ask("zebras"))
        await desk.work("index", {"rebuild": True})
        for _ in range(3):
            after = await searcher.search(ask("zebras"))
            assert after.hits == before.hits


async def test_another_model_is_refused_but_text_still_answers(desk: Desk) -> None:
    await desk.publish(TEXTS)
    async with desk.postgres.acquire() as connection:
        await connection.execute("UPDATE collections SET model_digest = 'other'")
    async with searching(desk) as searcher:
        with pytest.raises(SearchRefused) as caught:
            await searcher.search(ask("cats"))
        assert caught.value.type == "model_mismatch"
        assert urls(await searcher.search(ask("cats", mode="text"))) == ["cats"]


async def test_filters_narrow_before_the_best_are_chosen(desk: Desk) -> None:
    many = {f"https://a.example/{n}": f"Zebras graze on plain {n}." for n in range(120)}
    await desk.publish(many)
    last = await desk.put("https://b.example/x", "Zebras in a zoo.", tags=("zoo", "new"))
    await desk.work("embed", {"document_ids": [str(last.document_id)]})
    await desk.drain("index")
    async with searching(desk) as searcher:
        for mode in ("hybrid", "vector", "text"):
            for narrowed in (
                SearchFilter(url_prefix="https://b.example/"),
                SearchFilter(tags=("zoo",)),
                SearchFilter(document_ids=(last.document_id,)),
            ):
                found = await searcher.search(ask("grazing zebras", mode=mode, filter=narrowed))
                assert [hit.document.id for hit in found.hits] == [last.document_id]
            none = SearchFilter(tags=("zoo", "old"))
            assert (await searcher.search(ask("zebras", mode=mode, filter=none))).hits == ()


@pytest.mark.parametrize(
    "query",
    [
        "'",
        "\\",
        "a & !b | (c",
        "'); DROP TABLE chunks; --",
        "🦓",
        "中文",
        " ",
        "the of and",
        "%_:*",
    ],
)
@pytest.mark.parametrize("mode", ["hybrid", "text"])
async def test_odd_queries_have_an_answer(desk: Desk, query: str, mode: str) -> None:
    await desk.publish({"a": "It's a \\ path & the sign of 中文."})
    async with searching(desk) as searcher:
        found = await searcher.search(ask(query, mode=mode))
    assert len(found.hits) <= 1


async def test_empty_collections_answer_with_nothing(desk: Desk) -> None:
    async with searching(desk) as searcher:
        assert (await searcher.search(ask("anything"))).hits == ()
        with pytest.raises(CollectionNotFound):
            await searcher.search(ask("anything", collection="unknown"))
        await desk.put("doc", "Put but not embedded.", collection="waiting")
        assert (await searcher.search(ask("anything", collection="waiting"))).hits == ()
        await desk.publish({"empty": " "}, collection="blank")
        for mode in ("hybrid", "vector", "text"):
            found = await searcher.search(ask("anything", collection="blank", mode=mode))
            assert found.hits == ()


async def test_tenants_do_not_see_each_other(desk: Desk) -> None:
    await desk.publish(TEXTS)
    async with searching(desk) as searcher:
        stranger = SearchRequest(tenant_id=2, query="cats")
        assert (await searcher.search(stranger)).hits == ()


async def test_question_words_do_not_empty_a_text_search(desk: Desk) -> None:
    await desk.publish(TEXTS)
    async with searching(desk) as searcher:
        found = await searcher.search(ask("who told me that cats hunt at night?", mode="text"))
    assert urls(found)[0] == "cats"


@asynccontextmanager
async def serving(settings: Settings, db: Pool) -> AsyncIterator[str]:
    """The role itself, in this process; its address."""
    async with anyio.create_task_group() as group:
        group.start_soon(run_search_server, settings)
        yield (await registered(settings, db)).url
        group.cancel_scope.cancel()


async def registered(settings: Settings, db: Pool) -> search_servers.SearchServer:
    node = search_servers.node_id(settings.data_dir)
    with anyio.fail_after(30):
        while not (found := await search_servers.live(db, node)):
            await anyio.lowlevel.checkpoint()
    return found[0]


async def test_client_finds_the_server_by_itself(desk: Desk, db: Pool, settings: Settings) -> None:
    await desk.publish(TEXTS)
    async with serving(settings, db), SearchClient.open(settings, db) as client:
        found = await client.search(ask("cats", k=1))
        assert urls(found) == ["cats"]
        with pytest.raises(CollectionNotFound):
            await client.search(ask("cats", collection="unknown"))


async def test_client_says_how_to_get_a_server(db: Pool, settings: Settings) -> None:
    async with SearchClient.open(settings, db) as client:
        with pytest.raises(SearchUnavailable, match="xnai search-server"):
            await client.search(ask("cats"))


async def test_client_asks_the_next_when_one_is_dead(
    desk: Desk, db: Pool, settings: Settings
) -> None:
    await desk.publish(TEXTS)
    node = search_servers.node_id(settings.data_dir)
    dead = search_servers.SearchServer(UUID(int=1), node, "http://127.0.0.1:9")
    async with serving(settings, db):
        await search_servers.register(db, dead, host="test", pid=1)
        async with SearchClient.open(settings, db) as client:
            assert urls(await client.search(ask("cats", k=1))) == ["cats"]


async def test_server_answers_its_own_installation_only(db: Pool, settings: Settings) -> None:
    async with serving(settings, db) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.post("/search", content=b"{}")).status_code == 401
        wrong = {"authorization": "Bearer guess"}
        assert (await http.post("/search", content=b"{}", headers=wrong)).status_code == 401
        right = {"authorization": f"Bearer {await search_servers.secret(db)}"}
        for body in (b"{}", b"\xff", b"[", b'{"tenant_id":1,"query":"a","k":51}', b"\x00"):
            answer = await http.post("/search", content=body, headers=right)
            assert answer.status_code == 422, body
            assert answer.json()["type"] == "invalid_request"
        large = await http.post("/search", content=b"x" * 300_000, headers=right)
        assert large.status_code == 413
        assert (await http.get("/nothing")).status_code == 404


@pytest.mark.crash
async def test_process_ends_cleanly_on_sigterm_and_takes_itself_off_the_list(
    db: Pool, settings: Settings
) -> None:
    program = (
        "import anyio\nfrom runtime.settings import load_settings\n"
        "from workers.search_server import run_search_server\n"
        "anyio.run(run_search_server, load_settings())\n"
    )
    environment = {
        "XNAI_DATA_DIR": str(settings.data_dir),
        "XNAI_DATABASE_URL": settings.database_url or "",
        "XNAI_REDIS_URL": settings.redis_url or "",
        "PATH": "",
    }
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=root) as process:
        server = await registered(settings, db)
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{server.url}/healthz")).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait, 20) == 0
    assert await search_servers.live(db, server.node_id) == []


async def test_secret_is_one_for_all_who_ask_first(db: Pool) -> None:
    found: set[str] = set()

    async def one() -> None:
        found.add(await search_servers.secret(db))

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(one)
    assert len(found) == 1


async def test_rebuild_is_one_job(desk: Desk) -> None:
    await desk.publish(TEXTS)
    job = generations.rebuild("default")
    assert await desk.work(job.kind, job.payload) == {"indexed": 3, "index_generation": 1}
