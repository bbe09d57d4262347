"""Entries of a tenant: set by the installation's admins only, heeded at submit, explained."""

import httpx
import pytest

from api.keys import Role
from tests.api.conftest import ClientOf

pytestmark = pytest.mark.anyio

ENTRIES = "/v1/tenants/default/egress"
CRAWL = {"kind": "crawl", "payload": {"url": "http://10.1.2.3/"}}
HOOK = {"url": "http://10.1.2.3/hook", "events": ["*"]}


async def _statuses(client: httpx.AsyncClient) -> list[int]:
    """Every door through which a URL comes in."""
    batch = {"jobs": [CRAWL], "callback_url": "http://10.1.2.3/done"}
    schedule = {"name": "nightly", "job": CRAWL, "every_s": 3600}
    return [
        (await client.post("/v1/jobs", json=CRAWL)).status_code,
        (await client.post("/v1/batches", json=batch)).status_code,
        (await client.post("/v1/schedules", json=schedule)).status_code,
        (await client.post("/v1/webhooks", json=HOOK)).status_code,
    ]


async def test_entry_opens_every_door_and_closes_it_when_it_is_removed(
    client: httpx.AsyncClient,
) -> None:
    assert await _statuses(client) == [422] * 4
    made = await client.post(ENTRIES, json={"entry": "10.0.0.0/8", "note": "the office"})
    assert (made.status_code, made.json()["note"]) == (201, "the office")
    assert (await client.post(ENTRIES, json={"entry": "10.0.0.0/8"})).status_code == 201
    assert await _statuses(client) == [202, 202, 201, 201]
    listed = (await client.get(ENTRIES)).json()["data"]
    assert [entry["entry"] for entry in listed] == ["10.0.0.0/8"]
    for status in (204, 404):
        gone = await client.delete(ENTRIES, params={"entry": "10.0.0.0/8"})
        assert gone.status_code == status
    assert await _statuses(client) == [422] * 4


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "http://a.example/", "*", "a b", "a\u0000b"])
async def test_entry_that_cannot_be_read_is_422(client: httpx.AsyncClient, entry: str) -> None:
    refused = await client.post(ENTRIES, json={"entry": entry})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/entry"


async def test_tenant_cannot_let_itself_reach_more(
    client: httpx.AsyncClient, client_of: ClientOf
) -> None:
    other = await client_of(Role.ADMIN, "other")
    for path in ("/v1/tenants/other/egress", ENTRIES):
        assert (await other.get(path)).status_code == 403
        assert (await other.post(path, json={"entry": "10.0.0.0/8"})).status_code == 403
        assert (await other.delete(path, params={"entry": "x"})).status_code == 403
    check = {"url": "http://10.1.2.3/", "tenant": "default"}
    assert (await other.post("/v1/egress/check", json=check)).status_code == 403
    allowed = await client.post("/v1/tenants/other/egress", json={"entry": "10.0.0.0/8"})
    assert allowed.status_code == 201
    assert await _statuses(other) == [202, 202, 201, 201]
    assert await _statuses(client) == [422] * 4
    assert (await client.get("/v1/tenants/nobody/egress")).status_code == 404


async def test_check_tells_rule_entry_and_steps(client: httpx.AsyncClient) -> None:
    told = (await client.post("/v1/egress/check", json={"url": "http://0x7f.1:8080/"})).json()
    assert (told["allowed"], told["rule"], told["entry"]) == (False, "loopback", "127.0.0.1")
    assert [step["step"] for step in told["steps"]] == ["parse"]
    await client.post(ENTRIES, json={"entry": "127.0.0.1"})
    told = (await client.post("/v1/egress/check", json={"url": "http://0x7f.1:8080/"})).json()
    assert (told["allowed"], told["rule"], told["entry"]) == (True, None, None)
    assert told["steps"][-1]["detail"] == "127.0.0.1 is loopback, permitted by entry '127.0.0.1'"
    for url in ("", "http://", "x" * 2048):
        told = await client.post("/v1/egress/check", json={"url": url})
        assert (told.status_code, told.json()["allowed"]) == (200, False)


async def test_where_a_name_leads_is_told_to_the_installation_alone(
    client: httpx.AsyncClient, client_of: ClientOf
) -> None:
    other = await client_of(Role.ADMIN, "other")
    await client.post("/v1/tenants/other/egress", json={"entry": "127.0.0.0/8"})
    check = {"url": "http://localhost:8080/", "tenant": "other"}
    whole = (await client.post("/v1/egress/check", json=check)).json()
    told = (await other.post("/v1/egress/check", json=check)).json()
    assert whole["allowed"] == told["allowed"]
    assert "127.0.0.1" in str(whole["steps"])
    assert "127.0.0.1" not in str(told)
