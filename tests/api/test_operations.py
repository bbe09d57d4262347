"""/v1/operations and dead letters over HTTP."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from api.keys import Role
from jobs import operation_slices
from jobs.outcomes import Failed, Problem
from runtime.postgres import Pool
from tests.api.conftest import ClientOf
from tests.api.slot import PlayedSlot, register

pytestmark = pytest.mark.anyio

PROBE: dict[str, Any] = {"kind": "probe", "payload": {}}


@pytest.fixture
async def slot(app: FastAPI, db: Pool) -> PlayedSlot:
    return await register(db, app.state.services.live, "probe")


async def dead_letters(
    client: httpx.AsyncClient, slot: PlayedSlot, count: int = 1, type_: str = "broken"
) -> list[str]:
    """Jobs that have failed for good, oldest first."""
    ids = [(await client.post("/v1/jobs", json=PROBE)).json()["id"] for _ in range(count)]
    await slot.end(await slot.claim(), Failed(Problem(type_, "it broke", retryable=False)))
    return ids


async def start(client: httpx.AsyncClient, action: str, **filter_: Any) -> dict[str, Any]:
    response = await client.post("/v1/operations", json={"action": action, "filter": filter_})
    assert response.status_code == 202, response.text
    operation: dict[str, Any] = response.json()
    assert response.headers["location"] == operation["links"]["self"]
    return operation


async def work_off(db: Pool) -> None:
    async with db.acquire() as connection:
        while await operation_slices.work(connection) is not None:
            continue


async def failed_ids(client: httpx.AsyncClient, **params: str) -> list[str]:
    answer = await client.get("/v1/jobs", params={"state": "failed", **params})
    return [job["id"] for job in answer.json()["data"]]


async def test_an_operation_is_accepted_followed_and_done(
    client: httpx.AsyncClient, slot: PlayedSlot, db: Pool
) -> None:
    ids = await dead_letters(client, slot, 3)
    operation = await start(client, "retry", error_type="broken")
    assert (operation["state"], operation["actor"], operation["filter"]) == (
        "queued",
        "admin",
        {"error_type": "broken"},
    )
    assert operation["progress"] == {"done": 0, "total": 3}
    await work_off(db)
    path = operation["links"]["self"]
    after = (await client.get(path)).json()
    assert (after["state"], after["error"]) == ("succeeded", None)
    assert after["counts"] == {"matched": 3, "done": 3, "skipped": 0, "failed": 0}
    assert after["progress"] == {"done": 3, "total": 3}
    assert after["started_at"] <= after["finished_at"]
    assert {(await client.get(f"/v1/jobs/{i}")).json()["state"] for i in ids} == {"queued"}
    # Cancelling what is over changes nothing.
    assert (await client.post(f"{path}/cancel")).json() == after
    other = await start(client, "cancel", all=True)
    assert other["filter"] == {"all": True}
    assert (await client.post(other["links"]["cancel"])).json()["state"] == "cancelled"
    await work_off(db)
    listed = (await client.get("/v1/operations", params={"limit": 1})).json()
    assert [o["id"] for o in listed["data"]] == [other["id"]]
    rest = await client.get("/v1/operations", params={"cursor": listed["next_cursor"]})
    assert rest.json() == {"data": [after], "next_cursor": None}
    only = (await client.get("/v1/operations", params={"state": "cancelled"})).json()["data"]
    assert [o["id"] for o in only] == [other["id"]]


async def test_a_dry_run_counts_and_accepts_nothing(
    client: httpx.AsyncClient, slot: PlayedSlot, db: Pool
) -> None:
    ids = await dead_letters(client, slot, 12)
    body = {"action": "discard", "filter": {"kind": "probe"}, "dry_run": True}
    response = await client.post("/v1/operations", json=body)
    assert (response.status_code, "location" in response.headers) == (200, False)
    assert response.json() == {
        "dry_run": True,
        "action": "discard",
        "filter": {"kind": "probe"},
        "matched": 12,
        "at_least": False,
        "sample": ids[:10],
    }
    assert await db.fetchval("SELECT count(*) FROM operations") == 0
    assert await failed_ids(client) == ids[::-1]


async def test_a_repeated_request_is_one_operation(client: httpx.AsyncClient, db: Pool) -> None:
    body = {"action": "retry", "filter": {"kind": "probe"}}
    headers = {"Idempotency-Key": "o1"}
    first = await client.post("/v1/operations", json=body, headers=headers)
    again = await client.post("/v1/operations", json=body, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = await client.post("/v1/operations", json={**body, "action": "cancel"}, headers=headers)
    assert other.status_code == 422
    assert await db.fetchval("SELECT count(*) FROM operations") == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/action"),
        ({"action": "retry"}, "/filter"),
        ({"action": "explode", "filter": {"all": True}}, "/action"),
        ({"action": "retry", "filter": {}}, "/filter"),
        ({"action": "retry", "filter": {"all": False}}, "/filter"),
        ({"action": "retry", "filter": {"tags": []}}, "/filter"),
        ({"action": "retry", "filter": {"kind": ""}}, "/filter/kind"),
        ({"action": "retry", "filter": {"knid": "crawl"}}, "/filter/knid"),
        ({"action": "retry", "filter": {"ids": []}}, "/filter/ids"),
        ({"action": "retry", "filter": {"ids": ["7"]}}, "/filter/ids/0"),
        ({"action": "retry", "filter": {"ids": [str(uuid4())] * 1001}}, "/filter/ids"),
        ({"action": "retry", "filter": {"state": "queued"}}, "/filter/state"),
        ({"action": "discard", "filter": {"state": "cancelled"}}, "/filter/state"),
        ({"action": "cancel", "filter": {"state": "failed"}}, "/filter/state"),
        ({"action": "cancel", "filter": {"state": "sleeping"}}, "/filter/state"),
        (
            {"action": "cancel", "filter": {"finished_after": "2026-01-01T00:00:00Z"}},
            "/filter/finished_after",
        ),
        ({"action": "retry", "filter": {"finished_after": "yesterday"}}, "/filter/finished_after"),
        ({"action": "retry", "filter": {"tag": "a\x00"}}, "/filter/tag"),
        ({"action": "retry", "filter": {"all": True}, "dry_run": "yes"}, "/dry_run"),
    ],
)
async def test_a_bad_operation_is_422_and_names_the_field(
    client: httpx.AsyncClient, db: Pool, body: dict[str, Any], pointer: str
) -> None:
    response = await client.post("/v1/operations", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == pointer
    assert await db.fetchval("SELECT count(*) FROM operations") == 0


async def test_an_empty_filter_says_how_to_take_everything(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/operations", json={"action": "cancel", "filter": {}})
    assert '"all": true' in response.json()["detail"]


async def test_operations_are_for_operators_of_the_tenant(client_of: ClientOf) -> None:
    submitter, ours = await client_of(Role.SUBMITTER), await client_of(Role.OPERATOR)
    theirs = await client_of(Role.OPERATOR, "other")
    body = {"action": "cancel", "filter": {"all": True}}
    assert (await submitter.post("/v1/operations", json=body)).status_code == 403
    assert (await submitter.get("/v1/operations")).status_code == 403
    path = (await ours.post("/v1/operations", json=body)).json()["links"]["self"]
    assert (await theirs.get(path)).status_code == 404
    assert (await theirs.post(f"{path}/cancel")).status_code == 404
    assert (await theirs.get("/v1/operations")).json()["data"] == []
    assert (await ours.get(path)).json()["actor"] == "operator"


async def test_dead_letters_are_listed_by_error_discarded_and_brought_back(
    client: httpx.AsyncClient, client_of: ClientOf, slot: PlayedSlot
) -> None:
    one, other = await dead_letters(client, slot, 2)
    (third,) = await dead_letters(client, slot, type_="torn")
    assert await failed_ids(client) == [third, other, one]
    assert await failed_ids(client, error_type="torn") == [third]
    submitter = await client_of(Role.SUBMITTER)
    assert (await submitter.post(f"/v1/jobs/{one}/discard")).status_code == 403
    first = (await client.post(f"/v1/jobs/{one}/discard")).json()
    assert (first["state"], first["discarded_at"] is not None) == ("failed", True)
    assert (await client.post(f"/v1/jobs/{one}/discard")).json() == first
    assert await failed_ids(client) == [third, other]
    assert await failed_ids(client, discarded="true") == [one]
    assert await failed_ids(client, discarded="true", error_type="torn") == []
    listed = (await client.get("/v1/jobs")).json()["data"]
    assert [job["id"] for job in listed] == [third, other, one]
    back = (await client.post(f"/v1/jobs/{one}/retry")).json()
    assert (back["state"], back["discarded_at"]) == ("queued", None)


async def test_a_batchs_dead_letters_leave_out_the_discarded_ones(
    client: httpx.AsyncClient, slot: PlayedSlot
) -> None:
    batch = (await client.post("/v1/batches", json={"jobs": [PROBE] * 2})).json()["id"]
    await slot.end(await slot.claim(), Failed(Problem("broken", "x", retryable=False)))
    other, one = await failed_ids(client, batch_id=batch)
    await client.post(f"/v1/jobs/{one}/discard")
    assert await failed_ids(client, batch_id=batch) == [other]
    assert await failed_ids(client, batch_id=batch, discarded="true") == [one]
    assert await failed_ids(client, batch_id=batch, error_type="torn") == []
    whole = await client.get("/v1/jobs", params={"batch_id": batch})
    assert len(whole.json()["data"]) == 2


async def test_only_a_failed_job_is_discarded(client: httpx.AsyncClient) -> None:
    job = (await client.post("/v1/jobs", json=PROBE)).json()
    response = await client.post(f"/v1/jobs/{job['id']}/discard")
    assert (response.status_code, "queued" in response.json()["detail"]) == (409, True)
    assert (await client.post(f"/v1/jobs/{uuid4()}/discard")).status_code == 404


@pytest.mark.parametrize("query", ["error_type=x", "discarded=true", "state=queued&error_type=x"])
async def test_conditions_on_dead_letters_belong_to_the_state_failed(
    client: httpx.AsyncClient, query: str
) -> None:
    response = await client.get(f"/v1/jobs?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["in"] == "query"


async def test_metrics_tell_dead_letters_and_paused_pools(
    client: httpx.AsyncClient, app: FastAPI, slot: PlayedSlot
) -> None:
    one, _ = await dead_letters(client, slot, 2)
    await client.post(f"/v1/jobs/{one}/discard")
    await client.post("/v1/pools/probe/pause", json={"reason": "repairs"})
    await app.state.services.backlog.refresh()
    text = (await client.get("/metrics")).text
    assert "xnai_dead_letters 1.0" in text
    assert 'xnai_pool_paused{pool="probe"} 1.0' in text
    assert 'xnai_pool_paused{pool="embed"} 0.0' in text
