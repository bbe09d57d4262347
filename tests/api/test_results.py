"""Results of a batch: packed, waited for, complete, and bounded however slowly they are read."""

import gzip
import json
import secrets
import zlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from api.line_stream import LineStream, takes_gzip
from jobs import batches
from jobs.model import DEFAULT_TENANT
from jobs.outcomes import Completed
from runtime.postgres import Pool
from tests.api.slot import PlayedSlot, register

pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {}}


@pytest.fixture
async def slot(app: FastAPI, db: Pool) -> PlayedSlot:
    return await register(db, app.state.services.live, "probe")


async def submit(client: httpx.AsyncClient, jobs: int) -> str:
    named = [{**PROBE, "custom_id": str(number)} for number in range(jobs)]
    return (await client.post("/v1/batches", json={"jobs": named})).headers["location"]


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("*", True),
        ("*, gzip;q=0", False),
        ("gzip;q=many", False),
    ],
)
def test_gzip_is_sent_to_those_who_take_it(header: str | None, taken: bool) -> None:
    assert takes_gzip(header) is taken


async def test_results_are_packed_tagged_and_complete_once_finished(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = await submit(client, 3)
    claimed = await slot.claim()
    await slot.end(claimed[:1], Completed({"text": "zeile\u2028mit \xfcmlaut"}))
    so_far = await client.get(f"{path}/results", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in so_far.headers
    assert "etag" not in so_far.headers
    assert so_far.headers["batch-state"] == "running"
    assert json.loads(so_far.text)["result"] == {"text": "zeile\u2028mit \xfcmlaut"}
    await slot.end(claimed[1:])
    plain = await client.get(f"{path}/results", headers={"Accept-Encoding": "identity"})
    packed = await client.get(f"{path}/results", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["batch-state"] == "finished"
    assert packed.content == plain.content
    assert plain.content.count(b"\n") == 3
    # Tells the one from the other as HTTP caches need it, and both from what a retry adds.
    assert "accept-encoding" in packed.headers["vary"].lower()
    known = {"If-None-Match": packed.headers["etag"]}
    again = await client.get(f"{path}/results", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    other = {"cursor": json.loads(plain.text.splitlines()[0])["cursor"]}
    rest = await client.get(f"{path}/results", params=other, headers=known)
    assert (rest.status_code, rest.content.count(b"\n")) == (200, 2)


async def test_the_next_result_is_waited_for(client: httpx.AsyncClient, slot: PlayedSlot) -> None:
    path = await submit(client, 2)
    claimed = await slot.claim()
    await slot.end(claimed[:1])
    first = (await client.get(f"{path}/results", headers={"Prefer": "wait=30"})).text
    answers: list[httpx.Response] = []

    async def read_on() -> None:
        answers.append(
            await client.get(
                f"{path}/results",
                params={"cursor": json.loads(first)["cursor"]},
                headers={"Prefer": "wait=60"},
            )
        )

    with anyio.fail_after(50):
        async with anyio.create_task_group() as group:
            group.start_soon(read_on)
            await anyio.wait_all_tasks_blocked()
            await slot.end(claimed[1:])
    assert json.loads(answers[0].text)["id"] == str(claimed[1].id)
    # Of a finished batch nothing more will come.
    end = {"cursor": json.loads(answers[0].text)["cursor"]}
    over = await client.get(f"{path}/results", params=end, headers={"Prefer": "wait=60"})
    assert (over.status_code, over.content) == (200, b"")


async def test_what_was_finished_before_a_cancel_stays_in_the_results(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = await submit(client, 3)
    (done,) = await slot.claim(1)
    await slot.end([done])
    await client.post(f"{path}/cancel")
    lines = [json.loads(text) for text in (await client.get(f"{path}/results")).text.splitlines()]
    assert [line["state"] for line in lines] == ["succeeded", "cancelled", "cancelled"]
    assert lines[0]["id"] == str(done.id)


async def test_a_page_of_large_results_is_bounded_by_its_bytes(
    client: httpx.AsyncClient, slot: PlayedSlot, db: Pool
) -> None:
    path = await submit(client, 5)
    batch_id = UUID(path.rpartition("/")[2])
    for job in await slot.claim():
        # Random, so that Postgres stores it as large as it is.
        await slot.end([job], Completed(secrets.token_urlsafe(500_000)))
    async with db.acquire() as connection:
        page = await batches.results(connection, DEFAULT_TENANT, batch_id)
    assert 1 <= len(page) < 5
    lines = (await client.get(f"{path}/results")).text.splitlines()
    assert sorted(json.loads(line)["custom_id"] for line in lines) == ["0", "1", "2", "3", "4"]


async def test_a_slow_reader_holds_no_connection_and_a_dead_one_is_cut_off(
    app: FastAPI, client: httpx.AsyncClient, slot: PlayedSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await submit(client, 5)
    await slot.end(await slot.claim())
    reading, go_on = anyio.Event(), anyio.Event()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            reading.set()
            await go_on.wait()

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"{path}/results",
        "raw_path": f"{path}/results".encode(),
        "query_string": b"",
        "headers": [(b"authorization", client.headers["authorization"].encode())],
        "client": ("127.0.0.1", 1),
        "server": ("api", 80),
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    pool = app.state.services.postgres
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(app, scope, _nothing, send)
            await reading.wait()
            assert pool.get_idle_size() == pool.get_size()
            go_on.set()
        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert b"".join(message.get("body", b"") for message in sent).count(b"\n") == 5
        monkeypatch.setattr("api.line_stream.SEND_TIMEOUT_S", 0.01)
        go_on = anyio.Event()
        sent.clear()
        await app(scope, _nothing, send)
    # Not brought to its end: the server cuts the connection, and nobody takes it for a whole.
    assert sent[-1]["more_body"]


async def _nothing() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


async def test_what_is_packed_goes_out_page_by_page() -> None:
    """Whoever follows a batch gets its lines now, not when a block of gzip is full."""
    sent: list[bytes] = []

    async def pages() -> AsyncIterator[bytes]:
        yield b"first\n"
        assert _unpacked(sent) == b"first\n"
        yield b"second\n"

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    await LineStream(pages(), gzipped=True, headers={})({"type": "http"}, _nothing, send)
    assert gzip.decompress(b"".join(sent)) == b"first\nsecond\n"


def _unpacked(sent: list[bytes]) -> bytes:
    return zlib.decompressobj(31).decompress(b"".join(sent))


async def test_a_stream_goes_on_after_a_moment_without_postgres(
    app: FastAPI, client: httpx.AsyncClient, slot: PlayedSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    del app
    path = await submit(client, 4)
    await slot.end(await slot.claim())
    monkeypatch.setattr("api.routes.results.PAGE_LINES", 2)
    monkeypatch.setattr("api.routes.results.TRY_AGAIN_S", 0.0)
    looks = 0
    read = batches.results

    async def interrupted(*args: Any, **options: Any) -> list[batches.ResultLine]:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise asyncpg.CannotConnectNowError
        return await read(*args, **options)

    monkeypatch.setattr("api.routes.results.batches.results", interrupted)
    lines = (await client.get(f"{path}/results")).text.splitlines()
    assert {json.loads(line)["custom_id"] for line in lines} == {"0", "1", "2", "3"}
    assert looks == 4
