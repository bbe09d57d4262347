"""The index handler: one step a generation, files first, and what a crash or a rival leaves."""

import errno
from pathlib import Path

import anyio
import pytest

from corpus import audit, documents, generations
from corpus.errors import GenerationConflict
from corpus.model import IndexState, Segment
from jobs.errors import Fail, Retry, StaleToken
from jobs.model import DEFAULT_TENANT, JsonObject
from jobs.outcomes import Completed
from runtime.ids import uuid7
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk
from workers import search_audit, search_merges, search_segments
from workers.handlers import index

pytestmark = [pytest.mark.anyio, pytest.mark.model]

CATS = "Cats sleep for most of the day and hunt at dusk."
RAIN = "Rain falls on the western coast for most of the winter."


@pytest.fixture
def desk(db: Pool, redis: Client, settings: Settings) -> Desk:
    return Desk(db, redis, settings)


async def embedded(desk: Desk, key: str, text: str) -> JsonObject:
    """Put and embed a text; the payload of its index job, which has not run."""
    put = await desk.put(key, text)
    await desk.work("embed", {"document_ids": [str(put.document_id)]})
    return {"document_ids": [str(put.document_id)]}


async def state(desk: Desk) -> IndexState:
    async with desk.postgres.acquire() as connection:
        return await generations.state(connection, DEFAULT_TENANT, "default")


async def sound(desk: Desk) -> bool:
    async with desk.postgres.acquire() as connection:
        found = await audit.audit(connection, DEFAULT_TENANT, "default")
    assert found.findings == ()
    return True


def files(settings: Settings) -> list[Path]:
    return sorted(settings.data_dir.glob("index/*/*.seg"))


async def test_first_job_shows_all_that_is_pending_and_the_rest_find_nothing(desk: Desk) -> None:
    for n in range(3):
        await embedded(desk, f"doc{n}", f"{CATS} Part {n}.")
    results = await desk.drain("index")
    assert results == [{"indexed": 1, "index_generation": 1}] * 3
    assert len((await state(desk)).segments) == 1
    assert await sound(desk)


async def test_second_run_after_the_generation_gives_the_same_answer(desk: Desk) -> None:
    payload = await embedded(desk, "doc", CATS)
    run = await desk.claimed("index", payload)
    assert await index.handle(run) == await index.handle(run)
    assert (await state(desk)).generation == 1


async def test_crash_between_file_and_generation_shows_nothing_and_is_made_good(
    desk: Desk, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = await embedded(desk, "doc", CATS)

    async def dies(*_: object, **__: object) -> int:
        raise ConnectionResetError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(generations, "advance", dies)
        with pytest.raises(ConnectionResetError):
            await index.handle(await desk.claimed("index", payload))
    assert len(files(settings)) == 1
    assert (await state(desk)).generation == 0

    assert await desk.work("index", payload) == {"indexed": 1, "index_generation": 1}
    live = (await state(desk)).segments
    assert len(files(settings)) == 2
    assert live[0].file_name in {path.name for path in files(settings)}
    assert await sound(desk)


async def test_zombie_writes_a_file_but_never_a_generation(desk: Desk, settings: Settings) -> None:
    payload = await embedded(desk, "doc", CATS)
    run = await desk.claimed("index", payload)
    await desk.end(run, Completed({}))
    with pytest.raises(StaleToken):
        await index.handle(run)
    assert len(files(settings)) == 1
    assert (await state(desk)).generation == 0


async def test_two_index_jobs_at_once_make_every_chunk_visible_once(desk: Desk) -> None:
    payloads = [await embedded(desk, f"doc{n}", f"{CATS} {n}") for n in range(4)]
    runs = [await desk.claimed("index", payload) for payload in payloads]
    results: list[JsonObject] = []

    async def one(place: int) -> None:
        results.append(await index.handle(runs[place]))

    async with anyio.create_task_group() as group:
        for place in range(len(runs)):
            group.start_soon(one, place)
    assert [result["indexed"] for result in results] == [1] * 4
    assert sum(segment.vectors for segment in (await state(desk)).segments) == 4
    assert await sound(desk)


async def test_compare_and_set_lets_one_of_two_win(desk: Desk) -> None:
    await embedded(desk, "doc", CATS)
    before = await state(desk)
    async with desk.postgres.acquire() as connection:
        pending = await generations.pending(connection, before.collection_id)
        chosen = [edition.id for edition in pending]
        expected = before.generation
        async with connection.transaction():
            await generations.advance(
                connection,
                before.collection_id,
                expected=expected,
                editions=chosen,
                segment=None,
            )
        with pytest.raises(GenerationConflict):
            async with connection.transaction():
                await generations.advance(
                    connection,
                    before.collection_id,
                    expected=expected,
                    editions=chosen,
                    segment=None,
                )


async def test_audit_names_a_chunk_without_segment(desk: Desk) -> None:
    await desk.publish({"doc": CATS})
    async with desk.postgres.acquire() as connection:
        await connection.execute("DELETE FROM segments")
        found = await audit.audit(connection, DEFAULT_TENANT, "default")
    assert [finding.rule for finding in found.findings] == [
        "every shown chunk is in exactly one segment"
    ]


async def test_audit_of_the_files_finds_what_is_missing_and_what_is_foreign(desk: Desk) -> None:
    await desk.publish({"doc": CATS, "gone": RAIN})
    await desk.publish({"doc": RAIN})
    folder = desk.settings.data_dir
    found = await search_audit.audit_index(desk.postgres, folder, DEFAULT_TENANT, "default")
    assert (found.is_sound, found.generation, found.vectors) == (True, 2, 3)
    async with desk.postgres.acquire() as connection:
        await connection.execute("UPDATE segments SET retired_at = now() WHERE low_gen = 0")
        await connection.execute("UPDATE collections SET generation = 1")
    found = await search_audit.audit_index(desk.postgres, folder, DEFAULT_TENANT, "default")
    assert (len(found.missing), len(found.foreign)) == (2, 1)


async def test_rebuild_makes_one_segment_and_heals_lost_rows(desk: Desk) -> None:
    await desk.publish({"a": CATS})
    await desk.publish({"b": RAIN})
    assert len((await state(desk)).segments) == 2
    result = await desk.work("index", {"rebuild": True})
    assert result == {"indexed": 2, "index_generation": 2}
    assert len((await state(desk)).segments) == 1
    async with desk.postgres.acquire() as connection:
        await connection.execute("DELETE FROM segments")
    await desk.work("index", {"rebuild": True})
    assert await sound(desk)


async def test_newer_version_wins_over_a_late_embedding_of_an_older_one(desk: Desk) -> None:
    await embedded(desk, "doc", CATS)
    await embedded(desk, "doc", RAIN)
    await desk.drain("index")
    async with desk.postgres.acquire() as connection:
        document = (await documents.list_page(connection, DEFAULT_TENANT))[0]
        left = await generations.pending(connection, (await state(desk)).collection_id)
    assert document.indexed_version == 2
    assert left == []
    assert await sound(desk)


async def test_full_disk_is_a_retry_that_says_so(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = await embedded(desk, "doc", CATS)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(search_segments, "build_segment", full)
    with pytest.raises(Retry, match="free some space") as caught:
        await index.handle(await desk.claimed("index", payload))
    assert caught.value.type == "disk_full"
    monkeypatch.undo()
    assert await desk.work("index", payload) == {"indexed": 1, "index_generation": 1}


async def test_many_small_segments_are_merged(desk: Desk, settings: Settings) -> None:
    for n in range(search_merges.FAN_OUT):
        await desk.publish({f"doc{n}": f"{CATS} {n}"})
    found = await state(desk)
    assert found.generation == search_merges.FAN_OUT
    assert [(s.low_gen, s.high_gen, s.vectors) for s in found.segments] == [
        (0, found.generation, search_merges.FAN_OUT)
    ]
    assert await sound(desk)


async def test_sweep_leaves_young_and_live_files(
    desk: Desk, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.publish({"doc": CATS})
    found = await state(desk)
    place = search_segments.Place(settings.data_dir, found.collection_id, 1)
    orphan = place.folder / "000000000009-1-orphan.seg"
    orphan.write_bytes(b"x")
    assert search_segments.sweep(place, found.segments) == 0
    monkeypatch.setattr(search_segments, "ORPHAN_AGE_S", -60)
    assert search_segments.sweep(place, found.segments) == 1
    assert [path.name for path in files(settings)] == [found.segments[0].file_name]


async def test_unknown_collection_is_a_typed_failure(desk: Desk) -> None:
    run = await desk.claimed("index", {"rebuild": True, "collection": "nowhere"})
    with pytest.raises(Fail) as caught:
        await index.handle(run)
    assert caught.value.type == "collection_not_found"


def segment(low: int, vectors: int) -> Segment:
    return Segment(uuid7(), low, low + 1, vectors, "f", "c")


@pytest.mark.parametrize(
    ("sizes", "merged"),
    [
        ([1] * 7, 0),
        ([1] * 8, 8),
        ([5000] + [1] * 8, 8),
        ([1] * 4 + [5000] + [1] * 7, 0),
        ([2000] * 7 + [1] * 8, 8),
        ([2000] * 8, 8),
        ([2000] * 4 + [1] + [2000] * 4, 9),
        ([500_000] + [1] * 7, 0),
    ],
)
def test_merge_takes_the_newest_neighbours_of_a_tier(sizes: list[int], merged: int) -> None:
    segments = [segment(low, vectors) for low, vectors in enumerate(sizes)]
    chosen = search_merges.choose_merge(segments, live_chunks=sum(sizes))
    assert list(chosen) == (segments[-merged:] if merged else [])


def test_merge_takes_everything_when_most_of_it_is_dead() -> None:
    segments = [segment(0, 4000), segment(1, 10)]
    assert search_merges.choose_merge(segments, live_chunks=1500) == segments
