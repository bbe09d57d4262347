"""The doors of a batch under a user's eyes and an attacker's: what is read, bounded and
refused.
"""

import gzip
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI

from api import turns
from jobs.errors import IdempotencyInFlight
from jobs.spool_room import SpoolRoom
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import Live, started

pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {}}
LINE = json.dumps(PROBE).encode()
NDJSON = {"Content-Type": "application/x-ndjson"}
LARGE = json.dumps({"kind": "probe", "payload": {"echo": "x" * 200_000}}).encode() + b"\n"


@pytest.fixture
def room(app: FastAPI) -> SpoolRoom:
    found = app.state.services.spools
    assert isinstance(found, SpoolRoom)
    return found


async def jobs_of(db: Pool) -> int:
    return int(await db.fetchval("SELECT count(*) FROM jobs"))


@pytest.mark.parametrize(
    "body",
    [
        LINE + b"\r\n" + LINE + b"\r\n",
        b"\xef\xbb\xbf" + LINE + b"\n\n \n" + LINE,
        b"\n\r\n" + LINE + b"\n" + LINE,
    ],
    ids=["crlf", "byte order mark", "empty lines"],
)
async def test_lines_end_and_begin_as_editors_write_them(
    client: httpx.AsyncClient, body: bytes
) -> None:
    response = await client.post("/v1/batches", content=body, headers=NDJSON)
    assert response.status_code == 202, response.text
    assert response.json()["counts"]["total"] == 2


async def test_a_line_may_come_a_byte_at_a_time(client: httpx.AsyncClient) -> None:
    async def drops() -> AsyncIterator[bytes]:
        for byte in LINE + b"\n" + LINE:
            yield bytes((byte,))

    response = await client.post("/v1/batches", content=drops(), headers=NDJSON)
    assert response.json()["counts"]["total"] == 2


async def test_gzip_is_unpacked_and_is_the_same_request(client: httpx.AsyncClient) -> None:
    plain = (LINE + b"\n") * 20_000
    key = NDJSON | {"Idempotency-Key": "packed"}
    packed = gzip.compress(plain[:100]) + gzip.compress(plain[100:])
    headers = key | {"Content-Encoding": "gzip"}
    first = await client.post("/v1/batches", content=packed, headers=headers)
    second = await client.post("/v1/batches", content=plain, headers=key)
    assert first.status_code == 202, first.text
    assert first.json()["counts"]["total"] == 20_000
    assert second.content == first.content


@pytest.mark.parametrize(
    ("packing", "body", "status"),
    [
        ("gzip", gzip.compress(LINE)[:-9], 400),
        ("gzip", LINE, 400),
        ("br", LINE, 415),
        # A bomb: a line beyond every bound in a few kilobytes.
        ("gzip", gzip.compress(b"x" * 4_000_000), 413),
    ],
    ids=["cut off", "no gzip", "another packing", "bomb"],
)
async def test_what_cannot_be_unpacked_is_refused(
    client: httpx.AsyncClient, db: Pool, packing: str, body: bytes, status: int
) -> None:
    headers = NDJSON | {"Content-Encoding": packing}
    response = await client.post("/v1/batches", content=body, headers=headers)
    assert response.status_code == status, response.text
    if status == 415:
        assert response.headers["accept-encoding"] == "gzip"
    assert await jobs_of(db) == 0


async def test_every_bad_line_is_named_by_its_number(client: httpx.AsyncClient, db: Pool) -> None:
    response = await client.post("/v1/batches", content=(LINE + b"\n[]\n") * 300, headers=NDJSON)
    problem = response.json()
    assert response.status_code == 422
    assert problem["bad_lines"] == list(range(2, 601, 2))
    assert [error["line"] for error in problem["errors"]] == list(range(2, 201, 2))
    assert await jobs_of(db) == 0


async def test_what_ends_an_upload_at_once_names_its_line(client: httpx.AsyncClient) -> None:
    large = json.dumps({"kind": "probe", "payload": {"echo": "x" * 262_144}}).encode()
    response = await client.post("/v1/batches", content=LINE + b"\n" + large, headers=NDJSON)
    assert response.status_code == 413
    assert response.json()["errors"][0]["line"] == 2


async def test_lines_are_bounded_though_they_are_empty(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.lines.NDJSON_LINES", 1000)
    allowed = await client.post("/v1/batches", content=b"\n" * 999 + LINE, headers=NDJSON)
    refused = await client.post("/v1/batches", content=b"\n" * 1000 + LINE, headers=NDJSON)
    assert (allowed.status_code, refused.status_code) == (202, 413)


async def test_a_body_that_stands_still_is_408(
    client: httpx.AsyncClient, db: Pool, room: SpoolRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.limits.BODY_PAUSE_S", 0.05)

    async def stalled() -> AsyncIterator[bytes]:
        yield LINE + b"\n"
        await anyio.sleep_forever()

    response = await client.post("/v1/batches", content=stalled(), headers=NDJSON)
    assert response.status_code == 408
    assert (room.uploads, await jobs_of(db)) == (0, 0)


async def test_uploads_share_bounded_room(
    client: httpx.AsyncClient, db: Pool, room: SpoolRoom
) -> None:
    room.memory_bytes, room.disk_bytes = 1_000_000, 3_000_000
    refused = await client.post("/v1/batches", content=LARGE * 20, headers=NDJSON)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert (room.uploads, room.in_memory_bytes, room.on_disk_bytes) == (0, 0, 0)
    # Half of the memory, and then the disk.
    assert (await client.post("/v1/batches", content=LARGE * 12, headers=NDJSON)).status_code == 202
    assert await jobs_of(db) == 12
    assert (room.uploads, room.in_memory_bytes, room.on_disk_bytes) == (0, 0, 0)
    room.uploads_max = 0
    assert (await client.post("/v1/batches", content=LINE, headers=NDJSON)).status_code == 429


async def test_names_count_as_memory(client: httpx.AsyncClient, room: SpoolRoom) -> None:
    room.memory_bytes = 500_000
    named = [json.dumps({**PROBE, "custom_id": f"{n:0250}"}) for n in range(2_000)]
    response = await client.post("/v1/batches", content="\n".join(named), headers=NDJSON)
    assert response.status_code == 429
    assert room.in_memory_bytes == 0


async def test_jobs_that_are_not_plain_lie_on_disk_and_come_back_as_they_were(
    client: httpx.AsyncClient, room: SpoolRoom
) -> None:
    room.memory_bytes = 500_000
    line = {
        **PROBE,
        "run_at": "2027-01-02T03:04:05Z",
        "tags": ["t"],
        "priority": 7,
        "unique": {"key": "k"},
        "concurrency_key": "c",
        "custom_id": "last",
        "depends_on": ["first"],
        "on_parent_failure": "run",
    }
    delayed = b'{"kind":"probe","payload":{"echo":"x"},"delay_s":60}\n' * 3_000
    first = json.dumps({**PROBE, "custom_id": "first"}).encode() + b"\n"
    content = first + delayed + json.dumps(line).encode()
    response = await client.post("/v1/batches", content=content, headers=NDJSON)
    assert response.status_code == 202, response.text
    assert response.json()["counts"]["total"] == 3_002
    rows = (await client.get("/v1/jobs", params={"tag": "t"})).json()["data"]
    assert [(row["custom_id"], row["priority"], row["state"]) for row in rows] == [
        ("last", 7, "scheduled")
    ]
    assert rows[0]["run_at"] == "2027-01-02T03:04:05Z"


async def test_a_full_disk_is_503_and_says_so(
    client: httpx.AsyncClient, db: Pool, room: SpoolRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.memory_bytes = 1_000_000
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("jobs.spool.tempfile.TemporaryFile", lambda **_: full)
        response = await client.post("/v1/batches", content=LARGE * 5, headers=NDJSON)
    assert response.status_code == 503
    assert "disk" in response.json()["detail"]
    assert "retry-after" in response.headers
    assert (room.on_disk_bytes, await jobs_of(db)) == (0, 0)


async def test_a_repeat_waits_for_the_first_then_is_409_and_gets_its_answer_later(
    client: httpx.AsyncClient, db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is answered by another process here, which holds the key's row meanwhile."""
    monkeypatch.setattr("api.routes.batches.SAME_KEY_WAIT_S", 0.05)
    headers = NDJSON | {"Idempotency-Key": "k"}
    async with db.acquire() as other, other.transaction():
        await other.execute(_HOLD)
        told = await client.post("/v1/batches", content=LINE, headers=headers)
        assert told.status_code == 409
        assert told.json()["type"] == "urn:xnai:problem:in-flight"
        assert int(told.headers["retry-after"]) > 0
        await other.execute(_LET_GO)
    first, second = [
        await client.post("/v1/batches", content=LINE, headers=headers) for _ in range(2)
    ]
    assert first.status_code == 202
    assert second.content == first.content


_HOLD = "INSERT INTO idempotency_keys (tenant_id, key, request_hash) VALUES (1, 'k', '')"
_LET_GO = "DELETE FROM idempotency_keys"


async def test_a_turn_is_waited_for_and_forgotten() -> None:
    found = turns.Turns()
    order: list[str] = []

    async def take(name: str, wait_s: float) -> None:
        try:
            async with found.of("k", wait_s):
                order.append(name)
        except IdempotencyInFlight:
            order.append(f"{name} was told")

    with anyio.fail_after(30):
        async with (
            anyio.create_task_group() as group,
            found.of("k", 30),
            found.of("other", 30),
        ):
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(take, "second", 0.01)
            group.start_soon(take, "third", 30)
            await anyio.wait_all_tasks_blocked()
            order.append("first")
    assert order == ["second was told", "first", "third"]
    assert found.keys == 0


async def test_a_part_sent_five_times_at_once_is_added_once(
    client: httpx.AsyncClient, db: Pool
) -> None:
    path = (await client.post("/v1/batches", json={"state": "open"})).headers["location"]
    replayed: list[bool] = []

    async def append(part: str) -> None:
        response = await client.post(
            f"{path}/jobs", params={"part": part}, content=(LINE + b"\n") * 1500, headers=NDJSON
        )
        assert response.status_code == 202, response.text
        replayed.append(response.json()["replayed"])

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(append, f"p{number % 2}")
    assert sorted(replayed) == [False] * 2 + [True] * 8
    assert await jobs_of(db) == 3000


async def test_the_parts_that_arrived_are_told(client: httpx.AsyncClient) -> None:
    path = (await client.post("/v1/batches", json={"state": "open"})).headers["location"]
    for name in ("b", "a", "c"):
        line = {**PROBE, "custom_id": name, "depends_on": ["b"] if name == "a" else []}
        part = await client.post(f"{path}/jobs", params={"part": name}, json={"jobs": [line]})
        assert part.status_code == 202, part.text
    page = (await client.get(f"{path}/parts", params={"limit": 2})).json()
    assert [(row["part"], row["jobs"]) for row in page["data"]] == [("a", 1), ("b", 1)]
    rest = (await client.get(f"{path}/parts", params={"cursor": page["next_cursor"]})).json()
    assert [row["part"] for row in rest["data"]] == ["c"]
    assert rest["next_cursor"] is None
    # The job that waits is of one part, the one it waits for of another.
    batch = (await client.get(path)).json()
    assert (batch["counts"]["queued"], batch["counts"]["scheduled"]) == (2, 1)
    assert (await client.get(f"{path}/parts", params={"cursor": "\xe4"})).status_code == 422
    assert (await client.get(f"/v1/batches/{uuid4()}/parts")).status_code == 404


async def test_what_takes_no_part_says_so_before_it_reads_one(client: httpx.AsyncClient) -> None:
    path = (await client.post("/v1/batches", json={"state": "open"})).headers["location"]

    async def append_known() -> httpx.Response:
        return await client.post(
            f"{path}/jobs", params={"part": "known"}, content=LINE, headers=NDJSON
        )

    assert (await append_known()).status_code == 202
    await client.post(f"{path}/seal")

    async def never_read() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    late = await client.post(
        f"{path}/jobs", params={"part": "late"}, content=never_read(), headers=NDJSON
    )
    assert late.status_code == 409
    nobodys = await client.post(f"/v1/batches/{uuid4()}/jobs", content=never_read(), headers=NDJSON)
    assert nobodys.status_code == 404
    assert (await append_known()).json()["replayed"]


async def test_an_open_batch_without_jobs_finishes_when_it_is_sealed(
    client: httpx.AsyncClient,
) -> None:
    path = (await client.post("/v1/batches", json={"state": "open"})).headers["location"]
    for _ in range(2):
        sealed = (await client.post(f"{path}/seal")).json()
        assert (sealed["state"], sealed["counts"]["total"]) == ("finished", 0)


@pytest.mark.timeout(240)
async def test_a_hundred_thousand_jobs_five_times_at_once_or_cut_off_in_the_middle(
    settings: Settings, db: Pool
) -> None:
    async with started(settings) as live:
        await _cut_off_in_the_middle(live, settings.data_dir)
        assert await jobs_of(db) == 0
        assert await db.fetchval("SELECT count(*) FROM batches") == 0
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(_submit, live, (LINE + b"\n") * 100_000, answers)
        assert {response.status_code for response in answers} == {202}
        assert len({response.content for response in answers}) == 1
        assert answers[0].json()["counts"]["total"] == 100_000
        assert await jobs_of(db) == 100_000
        assert await db.fetchval("SELECT count(*) FROM batches") == 1


async def _submit(live: Live, body: bytes, answers: list[httpx.Response]) -> None:
    """As the contract has it: whoever is told that the first is in flight asks again."""
    headers = NDJSON | {"Authorization": f"Bearer {live.key}", "Idempotency-Key": "five"}
    async with httpx.AsyncClient(base_url=live.url, headers=headers, timeout=200) as client:
        while True:
            response = await client.post("/v1/batches", content=body)
            if response.status_code != 409:
                answers.append(response)
                return
            await anyio.sleep(float(response.headers["retry-after"]))


async def _cut_off_in_the_middle(live: Live, data_dir: Path) -> None:
    """Enough for a file, and then nothing but the end of the connection."""
    url = urlsplit(live.url)
    with socket.create_connection((url.hostname, url.port)) as connection:
        head = (
            f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\n"
            "Content-Type: application/x-ndjson\r\nContent-Length: 500000000\r\n\r\n"
        )
        connection.sendall(head.encode())
        await anyio.to_thread.run_sync(connection.sendall, LARGE * 200)
        await _until(live, data_dir, files=1)
    await _until(live, data_dir, files=0)


async def _until(live: Live, data_dir: Path, *, files: int) -> None:
    """Wait until the process has so many files without a name open."""
    with anyio.fail_after(60):
        while _nameless(live.api.pid, data_dir) != files:  # noqa: ASYNC110 - another process's
            await anyio.sleep(0.02)
    assert not list(data_dir.glob("tmp*"))


def _nameless(pid: int, data_dir: Path) -> int:
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        found += target.startswith(str(data_dir)) and target.endswith("(deleted)")
    return found
