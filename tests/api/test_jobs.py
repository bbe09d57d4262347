"""/v1/jobs row by row of the contract."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from jobs.outcomes import Failed, Problem
from jobs.pools import Pool as PoolDepth
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.slot import PlayedSlot, register

pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {"echo": 1}}
FIELDS = {
    *("id", "kind", "pool", "state", "state_reason", "settled", "payload", "priority", "tags"),
    *("custom_id", "batch_id", "parent_id", "schedule_id", "attempt", "max_attempts", "run_at"),
    *("created_at", "started_at", "finished_at", "cancel_requested_at", "progress", "follow_ups"),
    *("result", "error", "links"),
}


@pytest.fixture
async def slot(app: FastAPI, db: Pool) -> PlayedSlot:
    return await register(db, app.state.services.live, "probe")


async def test_a_job_is_accepted_with_every_field_of_the_contract(
    client: httpx.AsyncClient,
) -> None:
    body = {**PROBE, "priority": 9, "tags": ["a"], "custom_id": "c", "delay_s": 60}
    response = await client.post("/v1/jobs", json=body)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert job.keys() >= FIELDS
    assert (job["state"], job["state_reason"]) == ("scheduled", "delayed")
    assert (job["priority"], job["tags"], job["custom_id"]) == (9, ["a"], "c")
    assert job["payload"] == {"echo": 1}
    assert job["created_at"].endswith("Z")
    assert (await client.get(response.headers["location"])).json()["id"] == job["id"]


async def test_an_accepted_job_wakes_its_pool(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post("/v1/jobs", json=PROBE)
    redis = app.state.services.redis
    with anyio.fail_after(5):
        assert await redis.bzpopmin("arq:queue:probe", timeout=5) is not None


async def test_a_unique_match_answers_200_with_the_existing_job(client: httpx.AsyncClient) -> None:
    body = {**PROBE, "unique": {"key": "once"}}
    first, second = [await client.post("/v1/jobs", json=body) for _ in range(2)]
    assert (first.status_code, second.status_code) == (202, 200)
    assert second.json()["id"] == first.json()["id"]
    assert second.json()["deduplicated"] is True
    assert not first.json()["deduplicated"]


async def _together(count: int, work: Callable[[], Any]) -> list[httpx.Response]:
    answers: list[httpx.Response] = []

    async def one() -> None:
        answers.append(await work())

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
    return answers


async def test_five_requests_with_one_idempotency_key_make_one_job(
    client: httpx.AsyncClient, db: Pool
) -> None:
    headers = {"Idempotency-Key": "k-1"}
    answers = await _together(5, lambda: client.post("/v1/jobs", json=PROBE, headers=headers))
    assert [answer.status_code for answer in answers] == [202] * 5
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    replayed = sorted(answer.headers.get("idempotency-replayed", "") for answer in answers)
    assert replayed == ["", *["true"] * 4]
    assert await db.fetchval("SELECT count(*) FROM jobs") == 1


async def test_an_idempotency_key_with_another_body_is_422(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    await client.post("/v1/jobs", json=PROBE, headers=headers)
    other = await client.post("/v1/jobs", json={**PROBE, "priority": 1}, headers=headers)
    assert other.status_code == 422
    assert other.json()["type"].endswith("key-reused")


async def test_a_refused_request_leaves_its_idempotency_key_free(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    bad = {**PROBE, "depends_on": ["01890000-0000-7000-8000-000000000000"]}
    assert (await client.post("/v1/jobs", json=bad, headers=headers)).status_code == 422
    good = await client.post("/v1/jobs", json=PROBE, headers=headers)
    assert good.status_code == 202
    assert "idempotency-replayed" not in good.headers


async def test_one_bad_job_among_many_concurrent_ones_fails_alone(
    client: httpx.AsyncClient, db: Pool
) -> None:
    bodies = [PROBE] * 9 + [{**PROBE, "depends_on": ["01890000-0000-7000-8000-000000000000"]}]
    waiting = iter(bodies)
    answers = await _together(10, lambda: client.post("/v1/jobs", json=next(waiting)))
    assert sorted(answer.status_code for answer in answers) == [202] * 9 + [422]
    assert await db.fetchval("SELECT count(*) FROM jobs") == 9


async def test_prefer_wait_answers_200_once_the_job_has_settled(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    answers: list[httpx.Response] = []

    async def submit() -> None:
        headers = {"Prefer": "wait=30"}
        answers.append(await client.post("/v1/jobs", json=PROBE, headers=headers))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(submit)
            await slot.end(await slot.claim_next())
    assert answers[0].status_code == 200
    assert answers[0].headers["preference-applied"] == "wait=30"
    assert answers[0].json()["state"] == "succeeded"
    assert answers[0].json()["settled"] is True
    assert answers[0].json()["result"] == {"ok": True}


async def test_prefer_wait_answers_202_when_the_time_is_over(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/jobs", json=PROBE, headers={"Prefer": "wait=1, respond-async"}
    )
    assert response.status_code == 202


async def test_an_etag_answers_304_until_the_job_changes(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    tag = (await client.get(path)).headers["etag"]
    same = await client.get(path, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == tag
    assert (await client.get(path, headers={"If-None-Match": f'"x", W/{tag}'})).status_code == 304
    await slot.claim()
    changed = await client.get(path, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.json()["state"] == "running"


async def test_a_long_poll_answers_at_the_first_change(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    tag = (await client.get(path)).headers["etag"]
    answers: list[httpx.Response] = []

    async def poll() -> None:
        headers = {"If-None-Match": tag, "Prefer": "wait=30"}
        answers.append(await client.get(path, headers=headers))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(poll)
            await slot.claim()
    assert answers[0].status_code == 200
    assert answers[0].json()["attempt"] == 1


async def test_lists_page_without_gaps_or_repeats(client: httpx.AsyncClient) -> None:
    made = [(await client.post("/v1/jobs", json=PROBE)).json()["id"] for _ in range(7)]
    seen, cursor = [], None
    while True:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/v1/jobs", params=params)).json()
        seen += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        await client.post("/v1/jobs", json=PROBE)
    assert seen == made[::-1]


async def test_lists_filter(client: httpx.AsyncClient, slot: PlayedSlot) -> None:
    await client.post("/v1/jobs", json={**PROBE, "tags": ["x"]})
    await client.post("/v1/jobs", json={"kind": "embed", "payload": {"texts": ["a"]}})
    await slot.claim()
    for query, count in [
        ({"kind": "embed"}, 1),
        ({"state": "running"}, 1),
        ({"tag": "x", "kind": "probe"}, 1),
        ({"tag": "x", "kind": "embed"}, 0),
        ({"state": "failed"}, 0),
    ]:
        found = (await client.get("/v1/jobs", params=query)).json()["data"]
        assert len(found) == count, query


async def test_patch_changes_what_waits(client: httpx.AsyncClient, slot: PlayedSlot) -> None:
    path = (await client.post("/v1/jobs", json={**PROBE, "delay_s": 600})).headers["location"]
    changed = await client.patch(path, json={"priority": 8, "tags": ["b"]})
    assert (changed.json()["priority"], changed.json()["tags"]) == (8, ["b"])
    queued = await client.patch(path, json={"run_at": "2020-01-01T00:00:00Z"})
    assert queued.json()["state"] == "queued"
    await slot.end(await slot.claim())
    assert (await client.patch(path, json={"priority": 1})).status_code == 409


async def test_cancel_is_idempotent(client: httpx.AsyncClient) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    for _ in range(2):
        response = await client.post(f"{path}/cancel")
        assert response.status_code == 200
        assert response.json()["state"] == "cancelled"


async def test_cancelling_a_running_job_asks_its_slot(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/jobs", json=PROBE)).headers["location"]
    await slot.claim()
    job = (await client.post(f"{path}/cancel")).json()
    assert job["state"] == "running"
    assert job["cancel_requested_at"] is not None


async def test_retry_queues_a_failed_job_again_and_keeps_its_history(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    path = (await client.post("/v1/jobs", json={**PROBE, "max_attempts": 1})).headers["location"]
    problem = Problem("broken", "it broke", retryable=False)
    await slot.end(await slot.claim(), Failed(problem))
    failed = (await client.get(path)).json()
    assert (failed["state"], failed["error"]["type"]) == ("failed", "broken")
    for _ in range(2):
        retried = await client.post(f"{path}/retry")
        assert (retried.status_code, retried.json()["state"]) == (200, "queued")
    attempts = (await client.get(f"{path}/attempts")).json()["data"]
    assert [(a["attempt"], a["outcome"]) for a in attempts] == [(1, "failed")]


async def test_a_full_queue_is_429_with_a_time_to_come_back(
    client: httpx.AsyncClient, app: FastAPI, db: Pool
) -> None:
    guard = app.state.services.backlog
    await guard.refresh()
    depth = guard._pools["probe"]
    assert isinstance(depth, PoolDepth)
    for _ in range(3):
        await client.post("/v1/jobs", json=PROBE)
    guard._backlog_max = 3
    await guard.refresh()
    response = await client.post("/v1/jobs", json=PROBE)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert await db.fetchval("SELECT count(*) FROM jobs") == 3
    batch = await client.post("/v1/batches", json={"jobs": [PROBE]})
    assert batch.status_code == 429


async def test_a_repeat_is_answered_as_the_first_time_although_the_queue_is_full(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    paths = {"/v1/jobs": PROBE, "/v1/batches": {"jobs": [PROBE]}}
    first = {
        p: await client.post(p, json=body, headers={"Idempotency-Key": p})
        for p, body in paths.items()
    }
    guard = app.state.services.backlog
    guard._backlog_max = 1
    await guard.refresh()
    for path, body in paths.items():
        again = await client.post(path, json=body, headers={"Idempotency-Key": path})
        assert (again.status_code, again.content) == (202, first[path].content)
        assert (await client.post(path, json=body)).status_code == 429


async def test_two_api_processes_make_one_job_of_one_key(
    client: httpx.AsyncClient, settings: Settings, db: Pool
) -> None:
    """Neither an idempotency key nor a unique key knows which process a request came to."""
    from api.app import create_app
    from tests.api.conftest import http_client

    other = create_app(settings)
    async with (
        other.router.lifespan_context(other),
        http_client(other, dict(client.headers)) as second,
    ):
        clients = itertools.cycle((client, second))
        headers = {"Idempotency-Key": "k-1"}
        post = functools.partial(_post, clients, PROBE, headers)
        answers = await _together(10, post)
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        unique = {**PROBE, "unique": {"key": "u-1"}}
        answers = await _together(10, functools.partial(_post, clients, unique, {}))
        assert sorted(answer.status_code for answer in answers) == [200] * 9 + [202]
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert await db.fetchval("SELECT count(*) FROM jobs") == 2


async def _post(
    clients: Iterator[httpx.AsyncClient], body: dict[str, Any], headers: dict[str, str]
) -> httpx.Response:
    return await next(clients).post("/v1/jobs", json=body, headers=headers)


async def test_without_redis_jobs_are_accepted_and_waited_for(
    settings: Settings, db: Pool, anonymous: httpx.AsyncClient
) -> None:
    from api import keys
    from api.app import create_app
    from api.keys import NewKey, Role
    from tests.api.conftest import http_client

    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    app = create_app(away)
    async with db.acquire() as connection:
        _, text = await keys.create_key(connection, NewKey("a", Role.ADMIN))
    async with app.router.lifespan_context(app):
        slot = await register(db, app.state.services.live, "probe")
        async with http_client(app, {"Authorization": f"Bearer {text}"}) as client:
            answers: list[httpx.Response] = []

            async def submit() -> None:
                headers = {"Prefer": "wait=20"}
                answers.append(await client.post("/v1/jobs", json=PROBE, headers=headers))

            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(submit)
                    await slot.end(await slot.claim_next())
            assert answers[0].status_code == 200
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")


async def test_without_postgres_everything_is_503_and_comes_back_by_itself(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    pool = app.state.services.postgres
    taken = [await pool.acquire() for _ in range(pool.get_max_size())]
    try:
        async with anyio.create_task_group() as group:
            for method, path, body in [
                ("GET", "/v1/jobs", None),
                ("POST", "/v1/jobs", PROBE),
                ("POST", "/v1/batches", {"jobs": [PROBE]}),
            ]:

                async def ask(method: str, path: str, body: object) -> None:
                    response = await client.request(method, path, json=body)
                    assert response.status_code == 503, response.text
                    assert int(response.headers["retry-after"]) >= 1

                group.start_soon(ask, method, path, body)
    finally:
        for connection in taken:
            await pool.release(connection)
    assert (await client.post("/v1/jobs", json=PROBE)).status_code == 202
