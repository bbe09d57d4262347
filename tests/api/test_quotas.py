"""How much a tenant may have and ask for, who grants it, and what the log of acts says."""

from typing import Any

import anyio
import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from api import audit, quotas
from api.errors import Problem
from api.keys import Role
from api.quotas import Counted, Quotas
from api.rates import Rates
from jobs.model import DEFAULT_TENANT
from runtime.postgres import Pool
from tests.api.conftest import ClientOf

pytestmark = pytest.mark.anyio

JOB = {"kind": "embed", "payload": {"texts": ["a"]}}
SCHEDULE = {"every_s": 3600, "job": JOB}


async def grant(admin: httpx.AsyncClient, tenant: str, **changes: int | None) -> dict[str, Any]:
    response = await admin.patch(f"/v1/tenants/{tenant}/quotas", json=changes)
    assert response.status_code == 200, response.text
    return dict(response.json())


def assert_refused(response: httpx.Response, quota: str) -> None:
    assert response.status_code == 429, response.text
    assert response.json()["type"] == "urn:xnai:problem:quota-exceeded"
    assert quota in response.json()["detail"]
    assert int(response.headers["retry-after"]) >= 1


@pytest.fixture
async def tenant(client_of: ClientOf) -> httpx.AsyncClient:
    return await client_of(Role.ADMIN, "acme")


async def test_what_is_granted_holds_and_the_rest_keeps_its_default(
    client: httpx.AsyncClient, tenant: httpx.AsyncClient
) -> None:
    before = (await tenant.get("/v1/quotas")).json()
    assert before["changed"] == []
    granted = await grant(client, "acme", schedules=3, live_jobs=100)
    assert granted["changed"] == ["live_jobs", "schedules"]
    again = await grant(client, "acme", schedules=None)
    assert again["quotas"] == {**before["quotas"], "live_jobs": 100}
    assert (await tenant.get("/v1/quotas")).json()["quotas"] == again["quotas"]
    assert (await tenant.patch("/v1/tenants/acme/quotas", json={})).status_code == 403
    listed = (await client.get("/v1/tenants")).json()["data"]
    assert [t["tenant"] for t in listed] == ["acme", "default"]


@pytest.mark.parametrize(
    ("quota", "path", "body"),
    [
        ("schedules", "/v1/schedules", SCHEDULE),
        ("webhooks", "/v1/webhooks", {"url": "https://example.org/", "events": ["*"]}),
        ("open_batches", "/v1/batches", {"state": "open"}),
    ],
)
async def test_things_are_counted_exactly_however_many_ask_at_once(
    client: httpx.AsyncClient, tenant: httpx.AsyncClient, quota: str, path: str, body: Any
) -> None:
    await grant(client, "acme", **{quota: 3})
    answers: list[httpx.Response] = []

    async def make(number: int) -> None:
        named = {"name": str(number), **body} if quota == "schedules" else body
        answers.append(await tenant.post(path, json=named))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(make, number)
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(refused) == 5
    for answer in refused:
        assert_refused(answer, quota)
    assert (await tenant.get("/v1/quotas")).json()["used"][quota] == 3
    # Nobody else is counted with them.
    own = {"name": "own", **body} if quota == "schedules" else body
    assert (await client.post(path, json=own)).status_code == 201


async def test_live_jobs_are_counted_by_every_door(
    client: httpx.AsyncClient, tenant: httpx.AsyncClient
) -> None:
    await grant(client, "acme", live_jobs=5)
    opened = (await tenant.post("/v1/batches", json={"state": "open"})).json()
    assert (await tenant.post("/v1/batches", json={"jobs": [JOB] * 4})).status_code == 202
    assert_refused(await tenant.post("/v1/batches", json={"jobs": [JOB] * 2}), "live_jobs")
    part = {"jobs": [JOB] * 2}
    assert_refused(await tenant.post(f"/v1/batches/{opened['id']}/jobs", json=part), "live_jobs")
    lines = '{"kind":"embed","payload":{"texts":["a"]}}\n' * 2
    ndjson = {"Content-Type": "application/x-ndjson"}
    refused = await tenant.post("/v1/batches", content=lines, headers=ndjson)
    assert_refused(refused, "live_jobs")
    assert (await tenant.post("/v1/jobs", json=JOB)).status_code == 202
    assert_refused(await tenant.post("/v1/jobs", json=JOB), "live_jobs")
    once = {"Idempotency-Key": "once"}
    assert_refused(await tenant.post("/v1/jobs", json=JOB, headers=once), "live_jobs")
    assert_refused(await tenant.post("/v1/documents", json={"text": "a"}), "live_jobs")
    assert (await client.post("/v1/jobs", json=JOB)).status_code == 202
    assert (await tenant.get("/v1/quotas")).json()["used"]["live_jobs"] == 5


@pytest.mark.parametrize("quota", ["documents", "stored_bytes"])
async def test_a_tenant_that_has_stored_its_fill_adds_no_texts_and_crawls_no_pages(
    client: httpx.AsyncClient, tenant: httpx.AsyncClient, quota: str
) -> None:
    await grant(client, "acme", **{quota: 0})
    assert_refused(await tenant.post("/v1/documents", json={"text": "a"}), quota)
    crawl = {"kind": "crawl", "payload": {"url": "https://example.org/"}}
    assert_refused(await tenant.post("/v1/jobs", json=crawl), quota)
    assert (await tenant.post("/v1/jobs", json=JOB)).status_code == 202


async def test_no_quota_of_jobs_counts_nothing(db: Pool, app: FastAPI) -> None:
    """The default: a submission must not pay for what nobody has set."""
    guard = app.state.services.quotas
    await guard.admit_jobs(DEFAULT_TENANT, Quotas(), {"embed": 10**9, "crawl": 1})
    assert guard._counts == {}


async def test_a_tenant_that_asks_too_often_is_told_when_to_come_back(
    client: httpx.AsyncClient, tenant: httpx.AsyncClient
) -> None:
    await grant(client, "acme", requests_per_minute=30)
    answers = [await tenant.get("/v1/quotas") for _ in range(70)]
    by_status = {code: [a for a in answers if a.status_code == code] for code in (200, 429)}
    # A minute may end on the way, and the next one begin.
    assert 30 <= len(by_status[200]) <= 60
    assert len(by_status[200]) + len(by_status[429]) == 70
    refused = by_status[429][0]
    assert refused.json()["type"] == "urn:xnai:problem:rate-limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    for answer in answers:
        assert answer.headers["ratelimit-policy"] == '"requests";q=30;w=60'
    assert answers[0].headers["ratelimit"].startswith('"requests";r=29;t=')
    assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert "ratelimit" not in (await client.get("/v1/quotas")).headers


async def is_granted(rates: Rates) -> bool:
    try:
        await rates.take(DEFAULT_TENANT, 50)
    except Problem:
        return False
    return True


async def test_processes_share_a_tenants_minute(db: Pool) -> None:
    """Two processes that take requests in hand some at a time never grant more than there are."""
    processes = (Rates(db), Rates(db))
    granted = sum([await is_granted(processes[number % 2]) for number in range(200)])
    # Twice as many if a minute has ended on the way.
    assert 50 <= granted <= 100


async def test_without_postgres_no_rate_refuses_anybody() -> None:
    async with asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0) as pool:
        fields = dict(await Rates(pool).take(DEFAULT_TENANT, 50))
    assert fields[b"ratelimit"].startswith(b'"requests";r=')


async def test_acts_are_told_with_who_what_and_whence(
    client: httpx.AsyncClient, tenant: httpx.AsyncClient
) -> None:
    key = (await client.post("/v1/keys", json={"name": "new"})).json()
    await client.post(f"/v1/keys/{key['id']}/rotate", headers={"X-Request-Id": "abc-1"})
    await client.delete(f"/v1/keys/{key['id']}")
    await client.delete(f"/v1/keys/{key['id']}")
    await client.post("/v1/pools/embed/pause", json={"reason": "why"})
    await client.post("/v1/pools/embed/resume")
    await client.put("/v1/limits/k", json={"concurrency": 3})
    await grant(client, "acme", schedules=1)
    started = {"action": "cancel", "filter": {"tag": "x"}}
    operation = (await client.post("/v1/operations", json=started)).json()
    await client.post("/v1/operations", json={**started, "dry_run": True})
    await client.post(f"/v1/operations/{operation['id']}/cancel")
    acts = (await client.get("/v1/audit")).json()["data"]
    assert [(act["action"], act["target"]) for act in reversed(acts)] == [
        ("key.created", key["id"]),
        ("key.rotated", key["id"]),
        ("key.revoked", key["id"]),
        ("pool.paused", "embed"),
        ("pool.resumed", "embed"),
        ("limit.set", "k"),
        ("quotas.changed", "acme"),
        ("operation.started", operation["id"]),
        ("operation.cancelled", operation["id"]),
    ]
    own = next(k for k in (await client.get("/v1/keys")).json()["data"] if k["name"] == "admin")
    assert {(act["key_id"], act["key_name"], act["address"]) for act in acts} == {
        (own["id"], "admin", "127.0.0.1")
    }
    rotated = next(act for act in acts if act["action"] == "key.rotated")
    assert rotated["request_id"] == "abc-1"
    assert key["key"].split("_")[2] not in str(acts)
    chosen = (await client.get("/v1/audit", params={"action": "limit.set"})).json()["data"]
    assert [act["details"] for act in chosen] == [{"concurrency": 3}]
    page = (await client.get("/v1/audit", params={"limit": 4})).json()
    rest = await client.get("/v1/audit", params={"cursor": page["next_cursor"]})
    assert page["data"] + rest.json()["data"] == acts
    assert (await tenant.get("/v1/audit")).json()["data"] == []


async def test_an_act_that_fails_is_not_told(client: httpx.AsyncClient) -> None:
    """The act and its line are one transaction: here the one is refused after the other began."""
    missing = "018f0000-0000-7000-8000-000000000000"
    for path in (f"/v1/keys/{missing}", f"/v1/webhooks/{missing}", "/v1/collections/none"):
        assert (await client.delete(path)).status_code == 404
    assert (await client.post(f"/v1/operations/{missing}/cancel")).status_code == 404
    assert (await client.get("/v1/audit")).json()["data"] == []


async def test_the_log_is_append_only_but_for_retention(
    client: httpx.AsyncClient, db: Pool
) -> None:
    await client.put("/v1/limits/k", json={"concurrency": 3})
    for statement in ("UPDATE audit SET target = 'x'", "DELETE FROM audit", "TRUNCATE audit"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await db.execute(statement)
    async with db.acquire() as connection:
        assert not await audit.prune(connection, days=30)
        assert await connection.fetchval("SELECT count(*) FROM audit") == 1
        await connection.execute(
            "INSERT INTO audit (id, at, tenant_id, key_id, key_name, action, target)"
            " SELECT gen_random_uuid(), now() - interval '31 days', tenant_id, key_id, key_name,"
            " action, 'old' FROM audit"
        )
        await audit.prune(connection, days=30)
        assert await connection.fetchval("SELECT array_agg(target) FROM audit") == ["k"]


@pytest.mark.parametrize("what", Counted)
async def test_a_quota_of_nothing_allows_nothing(db: Pool, what: Counted) -> None:
    nothing = Quotas(schedules=0, webhooks=0, open_batches=0)
    async with db.acquire() as connection, connection.transaction():
        with pytest.raises(Problem):
            await quotas.admit_one(connection, DEFAULT_TENANT, nothing, what)
