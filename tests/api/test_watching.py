"""Watching: long polls that return with the change, streams that outlive an outage, places for a
bounded number, and the end of readers that are gone or take nothing.
"""

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from api import event_stream
from api.app import create_app
from api.event_stream import Chunk, EventStream, StreamReader, beat_at, encode_event
from api.places import Places
from jobs import events
from jobs.events import EventScope, NewEvent
from jobs.model import DEFAULT_TENANT, TenantId
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.conftest import http_client
from tests.api.slot import PlayedSlot, register
from tests.api.test_events import live, stream

__all__ = ["live"]
pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {}}
WAIT = {"Prefer": "wait=30"}
IN_TIME_S = 20.0


@pytest.fixture
async def slot(app: FastAPI, db: Pool) -> PlayedSlot:
    return await register(db, app.state.services.live, "probe")


async def test_a_batch_is_answered_once_it_has_changed(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/batches", json={"jobs": [PROBE] * 2})).headers["location"]
    first = await client.get(path)
    known = {"If-None-Match": first.headers["etag"]}
    assert (await client.get(path, headers=known)).status_code == 304
    unchanged = await client.get(path, headers={**known, "Prefer": "wait=0"})
    assert unchanged.status_code == 304
    assert unchanged.headers["preference-applied"] == "wait=0"
    answers: list[httpx.Response] = []

    async def poll(headers: dict[str, str]) -> None:
        answers.append(await client.get(path, headers={**headers, **WAIT}))

    claimed = await slot.claim()
    with anyio.fail_after(IN_TIME_S):
        async with anyio.create_task_group() as group:
            group.start_soon(poll, known)
            group.start_soon(poll, {"If-None-Match": '"another"'})
            await slot.end(claimed)
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.headers["preference-applied"] == "wait=30" for answer in answers)
    final = await client.get(path, headers=WAIT)
    assert final.json()["state"] == "finished"
    assert (await client.get("/v1/batches/" + "0" * 32, headers=WAIT)).status_code == 404


async def test_two_hundred_long_polls_of_a_batch_are_answered_by_one_change(
    client: httpx.AsyncClient, slot: PlayedSlot, app: FastAPI
) -> None:
    path = (await client.post("/v1/batches", json={"jobs": [PROBE]})).headers["location"]
    claimed = await slot.claim()
    known = {"If-None-Match": (await client.get(path)).headers["etag"]}
    found: list[str] = []

    async def poll() -> None:
        answer = await client.get(path, headers={**known, **WAIT})
        found.append(answer.json()["state"])

    with anyio.fail_after(IN_TIME_S):
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(poll)
            await slot.end(claimed)
    assert found == ["finished"] * 200
    assert app.state.services.places.is_free(DEFAULT_TENANT)


async def test_a_client_that_has_gone_ends_its_wait(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    path = (await client.post("/v1/jobs", json={**PROBE, "delay_s": 600})).headers["location"]
    key = client.headers["authorization"].encode()
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    waiting = anyio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        waiting.set()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        del message

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "server": ("api", 80),
        "client": ("127.0.0.1", 1),
        "app": app,
        "headers": [(b"authorization", key), (b"prefer", b"wait=60"), (b"host", b"api")],
    }
    with anyio.fail_after(IN_TIME_S):
        await app(scope, receive, send)
    assert waiting.is_set()


async def test_places_are_bounded_and_no_tenant_takes_all() -> None:
    places, one, other = Places(4), TenantId(1), TenantId(2)
    with places.taken(one, "job"), places.taken(one, "job"), places.taken(one, "wait"):
        with pytest.raises(Exception, match="the tenant has 3"), places.taken(one, "job"):
            pass
        with (
            places.taken(other, "batch"),
            pytest.raises(Exception, match="4 streams"),
            places.taken(other, "batch"),
        ):
            pass
    assert places.is_free(one)


async def test_full_is_told_with_a_time_to_come_again_and_loses_no_submission(
    settings: Settings, db: Pool, client: httpx.AsyncClient
) -> None:
    del db
    app = create_app(settings.model_copy(update={"watchers_max": 1}))
    async with (
        app.router.lifespan_context(app),
        http_client(app, dict(client.headers)) as narrow,
    ):
        path = (await narrow.post("/v1/jobs", json={**PROBE, "delay_s": 600})).headers["location"]
        places = app.state.services.places
        with places.taken(DEFAULT_TENANT, "job"):
            for answer in (
                await narrow.get(path, headers=WAIT),
                await narrow.get(f"{path}/events"),
                await narrow.get("/v1/events"),
            ):
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
            accepted = await narrow.post("/v1/jobs", json=PROBE, headers=WAIT)
            assert accepted.status_code == 202
            assert "preference-applied" not in accepted.headers


async def test_a_stream_sits_out_the_loss_of_its_connections(
    live: httpx.AsyncClient, slot: PlayedSlot, db: Pool
) -> None:
    path = (await live.post("/v1/batches", json={"jobs": [PROBE] * 2})).headers["location"]
    claimed = await slot.claim()
    async with stream(live, f"{path}/events") as told:
        await anext(told)
        async with db.acquire() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'xnai api' AND datname = current_database()"
            )
        await slot.end(claimed)
        rest = [event async for event in told]
    assert rest[-1]["event"] == "batch.finished"


async def test_a_quiet_tenants_reader_moves_on_with_the_others(db: Pool) -> None:
    other, scope = TenantId(2), EventScope(DEFAULT_TENANT)
    async with db.acquire() as connection, db.acquire() as late:
        start = await events.latest(connection)
        await events.add(connection, [NewEvent(other, "document.created", {})] * 5)
        page = await events.page(connection, scope, start)
        assert (page.events, page.is_full, page.is_pending) == ((), False, False)
        assert page.cursor > start
        transaction = late.transaction()
        await transaction.start()
        await events.add(late, [NewEvent(other, "document.created", {})])
        await events.add(connection, [NewEvent(DEFAULT_TENANT, "document.created", {"n": 1})])
        pending = await events.page(connection, scope, page.cursor)
        assert (pending.events, pending.is_pending) == ((), True)
        await transaction.commit()
        told = await events.page(connection, scope, pending.cursor)
    assert [event.data["n"] for event in told.events] == [1]


class Reader:
    """The server's side of a connection, whose reader takes as much as it likes."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.taken: list[bytes] = []
        self.heard = anyio.Event()
        self.gone = anyio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if len(self.taken) >= self.takes:
            await anyio.sleep_forever()
        self.taken.append(message.get("body", b""))
        self.heard.set()

    async def serve(self, source: AsyncGenerator[Chunk]) -> None:
        response = EventStream(source, StreamReader(DEFAULT_TENANT, Places(1), "tenant", 60))
        scope = {"type": "http", "extensions": {event_stream.CUT: {"now": self.gone.set}}}
        with anyio.fail_after(IN_TIME_S):
            await response(scope, self.receive, self.send)


async def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "STALLED_S", 0.05)
    reader, made = Reader(takes=3), 0

    async def endless() -> AsyncGenerator[Chunk]:
        nonlocal made
        while True:
            made += 1
            yield encode_event("job.succeeded", str(made), b"{}")

    await reader.serve(endless())
    assert reader.gone.is_set()
    # The head, `retry`, and one event: the next one waited with its reader, and no more were made.
    assert (len(reader.taken), made) == (3, 2)


async def test_heartbeats_move_a_quiet_reader_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    reader = Reader(takes=100)

    async def quiet() -> AsyncGenerator[Chunk]:
        yield Chunk(b"", 0, beat_at("7-7-1"))
        while not any(b"id: 7-7-1" in data for data in reader.taken):
            reader.heard = anyio.Event()
            await reader.heard.wait()

    await reader.serve(quiet())
    assert b": still here\nid: 7-7-1\n\n" in reader.taken
    assert reader.taken[-1] == b""
