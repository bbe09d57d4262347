"""/v1/batches row by row of the contract."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from jobs.outcomes import Failed, Problem
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import running
from tests.api.slot import PlayedSlot, register

pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {}}
NDJSON = {"Content-Type": "application/x-ndjson"}
STATES = ("scheduled", "queued", "running", "succeeded", "failed", "cancelled")


def lines(*jobs: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


def assert_adds_up(batch: dict[str, Any]) -> None:
    for counts in (batch["counts"], batch["follow_ups"]):
        assert sum(counts[state] for state in STATES) == counts["total"]


@pytest.fixture
async def slot(app: FastAPI, db: Pool) -> PlayedSlot:
    return await register(db, app.state.services.live, "probe")


async def test_a_batch_is_accepted_counted_finished_and_its_results_read(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    jobs = [{**PROBE, "custom_id": str(i)} for i in range(5)]
    response = await client.post("/v1/batches", json={"jobs": jobs, "tags": ["t"]})
    batch = response.json()
    path = response.headers["location"]
    assert response.status_code == 202
    assert (batch["state"], batch["counts"]["total"], batch["counts"]["queued"]) == (
        "running",
        5,
        5,
    )
    claimed = await slot.claim()
    assert_adds_up((await client.get(path)).json())
    await slot.end(claimed[:4])
    await slot.end(claimed[4:], Failed(Problem("broken", "it broke", retryable=False)))
    batch = (await client.get(path)).json()
    assert_adds_up(batch)
    assert (batch["state"], batch["run"]) == ("finished", 1)
    assert (batch["counts"]["succeeded"], batch["counts"]["failed"]) == (4, 1)
    results = await client.get(f"{path}/results")
    assert results.headers["content-type"].startswith("application/x-ndjson")
    found = [json.loads(line) for line in results.text.splitlines()]
    assert {line["custom_id"] for line in found} == {"0", "1", "2", "3", "4"}
    assert [line["error"]["type"] for line in found if line["state"] == "failed"] == ["broken"]
    rest = await client.get(f"{path}/results", params={"cursor": found[1]["cursor"]})
    assert [json.loads(line)["id"] for line in rest.text.splitlines()] == [
        line["id"] for line in found[2:]
    ]
    retried = (await client.post(f"{path}/retry")).json()
    assert_adds_up(retried)
    assert (retried["state"], retried["run"], retried["counts"]["queued"]) == ("running", 2, 1)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"jobs": []}, "/jobs"),
        ({}, "/jobs"),
        ({"jobs": [PROBE, {"kind": "x", "payload": {}}]}, "/jobs/1/kind"),
        ({"jobs": [PROBE, {**PROBE, "priority": 99}]}, "/jobs/1/priority"),
        (
            {"jobs": [PROBE, {"kind": "crawl", "payload": {"url": "file:///x"}}]},
            "/jobs/1/payload/url",
        ),
        ({"jobs": [{**PROBE, "custom_id": "a"}] * 2}, "/jobs/1/custom_id"),
        ({"jobs": [PROBE] * 1001}, "/jobs"),
        ({"jobs": [PROBE], "state": "open"}, "/jobs"),
        ({"jobs": [PROBE], "state": "closed"}, "/state"),
        ({"jobs": [PROBE], "callback_url": "http://127.0.0.1/"}, "/callback_url"),
        ({"jobs": [PROBE], "unknown": 1}, "/unknown"),
    ],
)
async def test_a_bad_batch_is_422_and_nothing_of_it_is_accepted(
    client: httpx.AsyncClient, db: Pool, body: dict[str, Any], pointer: str
) -> None:
    response = await client.post("/v1/batches", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == pointer
    assert await db.fetchval("SELECT count(*) FROM batches") == 0
    assert await db.fetchval("SELECT count(*) FROM jobs") == 0


async def test_ndjson_is_accepted_whole(client: httpx.AsyncClient) -> None:
    content = b"\n" + lines(PROBE, {**PROBE, "custom_id": "b"}) + json.dumps(PROBE).encode()
    response = await client.post("/v1/batches", content=content, headers=NDJSON)
    assert response.status_code == 202, response.text
    assert response.json()["counts"]["total"] == 3


async def test_ndjson_names_each_bad_line_and_accepts_nothing(
    client: httpx.AsyncClient, db: Pool
) -> None:
    bad = [
        lines(PROBE),
        b"{\n",
        b'{"kind": "probe", "payload": {"echo": "\xff"}}\n',
        b"\n",
        b'{"kind": "probe", "payload": {"echo": "\\u0000"}}\n',
        lines({"kind": "nonsense", "payload": {}}),
        lines({**PROBE, "priority": -1, "delay_s": -1}),
        b"[]\n",
    ]
    response = await client.post("/v1/batches", content=b"".join(bad), headers=NDJSON)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert [e["line"] for e in errors] == [2, 3, 5, 6, 7, 7, 8]
    assert [e["pointer"] for e in errors[2:6]] == [
        "/payload/echo",
        "/kind",
        "/priority",
        "/delay_s",
    ]
    assert await db.fetchval("SELECT count(*) FROM jobs") == 0


async def test_the_ledgers_refusals_name_their_lines_too(
    client: httpx.AsyncClient, db: Pool
) -> None:
    content = lines(PROBE, {**PROBE, "custom_id": "a"}) + b"\n" + lines({**PROBE, "custom_id": "a"})
    response = await client.post("/v1/batches", content=content, headers=NDJSON)
    assert response.status_code == 422
    assert [(e["line"], e["pointer"]) for e in response.json()["errors"]] == [(4, "/custom_id")]
    assert await db.fetchval("SELECT count(*) FROM batches") == 0


@pytest.mark.timeout(120)
async def test_a_hundred_thousand_lines_with_one_bad_one_are_refused_by_its_number(
    client: httpx.AsyncClient, db: Pool
) -> None:
    good = lines(PROBE)
    content = good * 77_776 + lines({"kind": "probe", "payload": {"sleep_s": -1}}) + good * 22_223
    response = await client.post("/v1/batches", content=content, headers=NDJSON)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["line"], error["pointer"]) == (77_777, "/payload/sleep_s")
    assert await db.fetchval("SELECT count(*) FROM jobs") == 0


async def test_one_line_more_than_a_batch_may_have_is_413(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.ndjson.BATCH_NDJSON_JOBS", 10)
    ten = await client.post("/v1/batches", content=lines(PROBE) * 10, headers=NDJSON)
    eleven = await client.post("/v1/batches", content=lines(PROBE) * 11, headers=NDJSON)
    assert (ten.status_code, eleven.status_code) == (202, 413)


async def test_a_line_that_is_too_long_is_413(client: httpx.AsyncClient, db: Pool) -> None:
    long = lines({"kind": "probe", "payload": {"echo": "x" * 400_000}})
    response = await client.post("/v1/batches", content=lines(PROBE) + long, headers=NDJSON)
    assert response.status_code == 413
    assert "line 2" in response.json()["detail"]
    assert await db.fetchval("SELECT count(*) FROM jobs") == 0


async def test_a_slow_upload_holds_no_connection_and_a_broken_one_leaves_nothing(
    settings: Settings, db: Pool
) -> None:
    """In a process of its own: ASGITransport hands a body over whole."""
    started, go_on = anyio.Event(), anyio.Event()

    async def body(*, breaks: bool) -> AsyncIterator[bytes]:
        yield lines(PROBE) * 5000
        started.set()
        await go_on.wait()
        if breaks:
            raise ConnectionError
        yield lines(PROBE) * 5000

    async with running(settings) as (url, key):
        headers = NDJSON | {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            answers: list[httpx.Response] = []

            async def upload() -> None:
                answers.append(await client.post("/v1/batches", content=body(breaks=False)))

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(upload)
                    await started.wait()
                    # Others are answered meanwhile, and nothing is open in the database.
                    assert (await client.get("/v1/jobs")).json()["data"] == []
                    assert await db.fetchval(_OPEN_TRANSACTIONS) == 0
                    go_on.set()
            assert answers[0].json()["counts"]["total"] == 10_000
            with pytest.raises(ConnectionError):
                await client.post("/v1/batches", content=body(breaks=True))
            batches = (await client.get("/v1/batches")).json()["data"]
            assert [batch["counts"]["total"] for batch in batches] == [10_000]


_OPEN_TRANSACTIONS = """SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'xnai api' AND xact_start IS NOT NULL AND state <> 'active'"""


async def test_an_empty_stream_is_422(client: httpx.AsyncClient) -> None:
    for content in (b"", b"\n\n"):
        response = await client.post("/v1/batches", content=content, headers=NDJSON)
        assert response.status_code == 422


async def test_an_open_batch_takes_each_part_once_and_finishes_when_sealed(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    created = await client.post("/v1/batches", json={"state": "open"})
    path = created.headers["location"]
    assert (created.status_code, created.json()["state"]) == (201, "open")
    for replayed in (False, True):
        part = await client.post(
            f"{path}/jobs", params={"part": "p1"}, content=lines(PROBE, PROBE), headers=NDJSON
        )
        assert part.status_code == 202
        assert (part.json()["jobs"], part.json()["replayed"]) == (2, replayed)
    other = await client.post(f"{path}/jobs", params={"part": "p1"}, json={"jobs": [PROBE]})
    assert other.status_code == 422
    await client.post(f"{path}/jobs", params={"part": "p2"}, json={"jobs": [PROBE]})
    await slot.end(await slot.claim())
    assert (await client.get(path)).json()["state"] == "open"
    for _ in range(2):
        sealed = (await client.post(f"{path}/seal")).json()
        assert (sealed["state"], sealed["counts"]["succeeded"]) == ("finished", 3)
    late = await client.post(f"{path}/jobs", params={"part": "p3"}, json={"jobs": [PROBE]})
    assert late.status_code == 409


async def test_cancel_ends_what_waits_and_keeps_finished_work(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/batches", json={"jobs": [PROBE] * 4})).headers["location"]
    await slot.end(await slot.claim(1))
    for _ in range(2):
        batch = (await client.post(f"{path}/cancel")).json()
        assert_adds_up(batch)
        assert batch["state"] == "finished"
        assert (batch["counts"]["succeeded"], batch["counts"]["cancelled"]) == (1, 3)


async def test_a_repeated_batch_with_one_idempotency_key_is_one_batch(
    client: httpx.AsyncClient, db: Pool
) -> None:
    headers = {**NDJSON, "Idempotency-Key": "b-1"}
    first, second = [
        await client.post("/v1/batches", content=lines(PROBE, PROBE), headers=headers)
        for _ in range(2)
    ]
    assert first.content == second.content
    assert second.headers["idempotency-replayed"] == "true"
    other = await client.post("/v1/batches", content=lines(PROBE), headers=headers)
    assert other.status_code == 422
    assert await db.fetchval("SELECT count(*) FROM jobs") == 2


async def test_jobs_of_a_batch_depend_on_each_other_by_custom_id(client: httpx.AsyncClient) -> None:
    jobs = [{**PROBE, "custom_id": "a"}, {**PROBE, "custom_id": "b", "depends_on": ["a"]}]
    batch = (await client.post("/v1/batches", json={"jobs": jobs})).json()
    assert (batch["counts"]["queued"], batch["counts"]["scheduled"]) == (1, 1)
