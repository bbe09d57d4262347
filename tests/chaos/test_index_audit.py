"""The audit after a run names what searches miss, what they have no right to, and who is late."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from chaos import index_audit
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk

pytestmark = [pytest.mark.anyio, pytest.mark.model]

FIRST, SECOND = "Cats sleep for most of the day.", "Rain falls on the western coast."


@pytest.fixture
async def desk(db: Pool, redis: Client, settings: Settings) -> Desk:
    found = Desk(db, redis, settings)
    await found.publish({"a": FIRST, "b": SECOND})
    return found


async def shown(desk: Desk) -> list[UUID]:
    async with desk.postgres.acquire() as connection:
        return [row["id"] for row in await connection.fetch("SELECT id FROM chunks ORDER BY id")]


async def audited(
    desk: Desk, hits: Iterable[UUID], *, stale: bool = False
) -> dict[str, tuple[str, ...]]:
    """The findings by rule, when searches answer with these chunks."""
    answer = {"stale": stale, "hits": [{"chunk_id": str(chunk_id)} for chunk_id in hits]}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    server = SimpleNamespace(url=desk.settings.database_url)
    stack: Any = SimpleNamespace(  # the folder and the address are all that is asked for
        data_dir=desk.settings.data_dir, servers=SimpleNamespace(postgres=server)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        found = await index_audit.audit_indexes(stack, http)
    assert {one.collection for one in found} <= {"default"}
    return {one.rule: one.ids for one in found}


async def test_sound_index_that_is_searched_whole_is_not_spoken_of(desk: Desk) -> None:
    known = await shown(desk)
    assert len(known) == 2
    assert await audited(desk, known) == {}


async def test_search_that_misses_a_chunk_and_shows_a_stranger_is_named(desk: Desk) -> None:
    (kept, missed), stranger = await shown(desk), uuid4()
    assert await audited(desk, [kept, stranger]) == {
        "a search finds every chunk that is shown": (str(missed),),
        "a search finds nothing else": (str(stranger),),
    }


async def test_deleted_chunk_that_is_still_found_is_named(desk: Desk) -> None:
    known = await shown(desk)
    async with desk.postgres.acquire() as connection:
        await connection.execute("UPDATE documents SET deleted_at = now() WHERE key = 'a'")
    (left,) = [one for rule in (await audited(desk, known)).values() for one in rule]
    assert UUID(left) in known


async def test_vectors_that_no_file_holds_are_named(desk: Desk) -> None:
    known = await shown(desk)
    async with desk.postgres.acquire() as connection:
        await connection.execute("DELETE FROM segments")
    found = await audited(desk, known)
    assert list(found) == ["the files hold every vector that is shown"]
    assert len(found["the files hold every vector that is shown"]) == 2


async def test_search_role_that_never_catches_up_is_named(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_audit, "CAUGHT_UP_S", 0.3)
    found = await audited(desk, await shown(desk), stale=True)
    assert list(found) == ["a search answers from the newest generation in time"]
