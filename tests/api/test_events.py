"""Event streams: what they tell, where they resume, and that they end."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from api.streams import Phase, Position
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import running
from tests.api.slot import PlayedSlot, register

pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {}}


@pytest.fixture
async def slot(app: FastAPI, db: Pool) -> PlayedSlot:
    return await register(db, app.state.services.live, "probe")


@pytest.fixture
async def live(settings: Settings, db: Pool) -> AsyncIterator[httpx.AsyncClient]:
    """The API in a process of its own: ASGITransport holds a stream back until it has ended."""
    del db
    async with running(settings) as (url, key):
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
            yield client


def parse(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line[1:])
        if "event" in fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, path: str, last_id: str | None = None
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}

    async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        block = ""
        async for line in response.aiter_lines():
            block += line + "\n"
            if not line:
                for event in parse(block + "\n"):
                    yield event
                block = ""

    with anyio.fail_after(20):
        async with client.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield events(response)


async def test_a_jobs_stream_tells_its_story_and_ends(
    live: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await live.post("/v1/jobs", json=PROBE)).headers["location"]
    seen: list[dict[str, Any]] = []
    async with stream(live, f"{path}/events") as events:
        (job,) = await slot.claim()
        seen.append(await anext(events))
        await slot.live.progress(job, 1, 2, "half")
        seen.append(await anext(events))
        await slot.live.token(job, "Hello")
        seen.append(await anext(events))
        await slot.end([job])
        seen += [event async for event in events]
    assert [event["event"] for event in seen] == [
        *("job.started", "job.progress", "job.token", "job.succeeded", "job.settled"),
    ]
    assert seen[1]["data"] == {"done": 1, "total": 2, "message": "half"}
    assert seen[2]["data"] == {"attempt": 1, "text": "Hello"}
    assert seen[-1]["data"]["result"] == {"ok": True}


async def test_a_reader_resumes_after_its_last_event_and_is_told_to_stay_away_at_the_end(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    await slot.end(await slot.claim())
    whole = parse((await client.get(f"{path}/events")).text)
    assert [event["event"] for event in whole] == ["job.started", "job.succeeded", "job.settled"]
    for position, event in enumerate(whole):
        rest = await client.get(f"{path}/events", headers={"Last-Event-ID": event["id"]})
        assert [e["id"] for e in parse(rest.text)] == [e["id"] for e in whole[position + 1 :]]
        assert rest.status_code == (204 if event is whole[-1] else 200)


async def test_a_late_reader_misses_no_token(client: httpx.AsyncClient, slot: PlayedSlot) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    (job,) = await slot.claim()
    for word in ("one", "two", "three"):
        await slot.live.token(job, word)
    await slot.end([job])
    events = parse((await client.get(f"{path}/events")).text)
    tokens = [event for event in events if event["event"] == "job.token"]
    assert [event["data"]["text"] for event in tokens] == ["one", "two", "three"]
    later = await client.get(f"{path}/events", headers={"Last-Event-ID": tokens[1]["id"]})
    texts = [e["data"]["text"] for e in parse(later.text) if e["event"] == "job.token"]
    assert texts == ["three"]


async def test_a_batchs_stream_sends_snapshots_until_it_is_finished(
    live: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    created = await live.post("/v1/batches", json={"jobs": [PROBE] * 3})
    path = created.headers["location"]
    async with stream(live, f"{path}/events") as events:
        first = await anext(events)
        assert first["event"] == "batch.counts"
        assert first["data"]["counts"]["queued"] == 3
        await slot.end(await slot.claim())
        rest = [event async for event in events]
    assert rest[-1]["event"] == "batch.finished"
    assert rest[-1]["data"]["counts"]["succeeded"] == 3
    assert rest[-1]["data"]["run"] == 1
    again = await live.get(f"{path}/events", headers={"Last-Event-ID": rest[-1]["id"]})
    assert again.status_code == 204


async def test_the_tenants_stream_replays_after_the_last_event(
    live: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    async with stream(live, "/v1/events") as events:
        # The first heartbeat-free moment that proves the stream is open is an event of ours.
        await live.post("/v1/jobs", json=PROBE)
        claimed = await slot.claim()
        await slot.end(claimed)
        first = await anext(events)
    assert first["data"]["data"]["job_id"] == str(claimed[0].id)
    await live.post("/v1/jobs", json=PROBE)
    others = await slot.claim()
    await slot.end(others)
    async with stream(live, "/v1/events", first["id"]) as events:
        seen = [await anext(events) for _ in range(2)]
    ids = {event["data"]["data"]["job_id"] for event in seen}
    assert str(others[0].id) in ids


@pytest.mark.parametrize("last_id", ["x", "1.2", "1.9.0-0", "a.b.c", "1.1.x-y", "..", "9" * 300])
async def test_a_last_event_id_that_no_stream_gave_is_422(
    client: httpx.AsyncClient, last_id: str
) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    for stream_path in (f"{path}/events", "/v1/events"):
        response = await client.get(stream_path, headers={"Last-Event-ID": last_id})
        assert response.status_code == 422, (stream_path, response.text)


async def test_streams_end_when_the_server_stops(settings: Settings, db: Pool) -> None:
    del db
    async with running(settings) as (url, key):
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.AsyncClient(base_url=url, headers=headers, timeout=20)
        path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
        request = client.build_request("GET", f"{path}/events")
        response = await client.send(request, stream=True)
        assert response.status_code == 200
    with anyio.fail_after(5):
        text = (await response.aread()).decode()
    assert text.startswith("retry:")
    await client.aclose()


def test_positions_order_and_survive_their_text() -> None:
    position = Position(3, Phase.ENDED, "17-4")
    assert Position.parse(str(position)) == position
    assert Position(1, Phase.SETTLED) < Position(2, Phase.STARTED)
