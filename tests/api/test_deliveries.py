"""Webhooks over HTTP: their secrets, what was sent to them, and sending it again."""

from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from api.keys import Role
from jobs.model import DEFAULT_TENANT
from runtime.egress import EgressPolicy
from runtime.postgres import Pool
from tests.api.conftest import ClientOf
from tests.webhooks.receiver import Receiver, receiver, reply
from webhooks import endpoints, redeliveries
from webhooks.deliver import Deliverer
from webhooks.endpoints import EndpointSpec
from webhooks.model import EVENT_PATTERNS, Endpoint
from webhooks.wire import Wire

pytestmark = pytest.mark.anyio

URL = "https://example.org/hook"
LOCAL = EgressPolicy(("127.0.0.0/8",))


async def made(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/webhooks", json={"url": URL, "events": ["*"], **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def sent(db: Pool, there: Receiver) -> Endpoint:
    """A webhook on this machine that was sent one test."""
    deliverer = Deliverer(db, Wire(LOCAL))
    async with db.acquire() as connection:
        spec = EndpointSpec(there.url, ("*",))
        endpoint, _ = await endpoints.create(connection, DEFAULT_TENANT, spec, policy=LOCAL)
        await endpoints.send_test(connection, DEFAULT_TENANT, endpoint.id)
    assert await deliverer.deliver_due() == 1
    return endpoint


async def test_an_unknown_event_is_refused_with_those_that_there_are(
    client: httpx.AsyncClient,
) -> None:
    asked = {"url": URL, "events": ["job.succeeded", "job.exploded"]}
    refused = await client.post("/v1/webhooks", json=asked)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert error["pointer"] == "/events/1"
    assert all(name in error["detail"] for name in EVENT_PATTERNS)


async def test_a_rotation_shows_the_new_secret_once_and_may_end_the_old_one(
    client: httpx.AsyncClient,
) -> None:
    webhook = await made(client)
    path = webhook["links"]["self"]
    rotated = (await client.post(f"{path}/rotate")).json()
    assert rotated["secret"] != webhook["secret"]
    assert rotated["previous_secret_until"] > rotated["updated_at"]
    at_once = (await client.post(f"{path}/rotate", json={"overlap_s": 0})).json()
    assert at_once["previous_secret_until"] == at_once["updated_at"]
    assert "secret" not in (await client.get(path)).json()
    for overlap_s in (1e9, -1, False, "60"):
        refused = await client.post(f"{path}/rotate", json={"overlap_s": overlap_s})
        assert refused.status_code == 422


async def test_the_callback_secret_rotates_too(client: httpx.AsyncClient) -> None:
    first = (await client.get("/v1/callback-secret")).json()
    assert first["previous_secret_until"] is None
    second = (await client.post("/v1/callback-secret/rotate")).json()
    assert second["secret"] != first["secret"]
    assert (await client.get("/v1/callback-secret")).json() == second


async def test_the_log_shows_what_was_sent_and_answered(
    client: httpx.AsyncClient, db: Pool
) -> None:
    async with receiver(reply(500, b"no", X_Why="because")) as there:
        endpoint = await sent(db, there)
    path = f"/v1/webhooks/{endpoint.id}/deliveries"
    (listed,) = (await client.get(path)).json()["data"]
    assert (listed["type"], listed["state"]) == ("webhook.test", "pending")
    (line,) = (await client.get(listed["links"]["self"])).json()["attempts"]
    assert (line["status"], line["address"], line["error_type"]) == (500, "127.0.0.1", "refused")
    assert line["request"]["headers"]["webhook-id"] == listed["id"]
    assert line["request"]["body"] == there.requests[0].body.decode()
    assert (line["response"]["headers"]["x-why"], line["response"]["body"]) == ("because", "no")
    shown = (await client.get(f"/v1/webhooks/{endpoint.id}")).json()
    # A test is a lane of its own: nothing is held against the webhook's events.
    assert shown["circuit"] is None


async def test_lists_are_filtered_and_refuse_what_there_is_not(
    client: httpx.AsyncClient, client_of: ClientOf, db: Pool
) -> None:
    async with receiver() as there:
        endpoint = await sent(db, there)

    async def count(**params: Any) -> int:
        answer = await client.get("/v1/deliveries", params=params)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["data"])

    assert await count() == await count(type="webhook.test", state="delivered") == 1
    assert await count(webhook_id=str(endpoint.id), occurred_after="2020-01-01T00:00:00Z") == 1
    assert await count(state="dead") == await count(type="job.failed") == 0
    assert await count(occurred_before="2020-01-01T00:00:00Z") == 0
    for bad in ({"type": "job.exploded"}, {"state": "lost"}, {"occurred_after": "yesterday"}):
        assert (await client.get("/v1/deliveries", params=bad)).status_code == 422
    stranger = await client_of(Role.ADMIN, "other")
    assert (await stranger.get("/v1/deliveries")).json()["data"] == []


async def test_a_redelivery_by_filter_is_counted_kept_shown_and_cancelled(
    client: httpx.AsyncClient, client_of: ClientOf, db: Pool
) -> None:
    async with receiver() as there:
        endpoint = await sent(db, there)
        path = f"/v1/webhooks/{endpoint.id}/redeliver"
        asked = {"filter": {"state": "delivered"}}
        counted = await client.post(path, json={**asked, "dry_run": True})
        assert counted.json() == {"dry_run": True, "matched": 1, "at_least": False}
        started = await client.post(path, json=asked)
        assert started.status_code == 202
        where = started.headers["location"]
        async with db.acquire() as connection:
            await redeliveries.work(connection)
        done = (await client.get(where)).json()
        assert (done["state"], done["done"], done["expected"]) == ("finished", 1, 1)
        assert done["filter"] == {"webhook_id": str(endpoint.id), "state": "delivered"}
        assert await Deliverer(db, Wire(LOCAL)).deliver_due() == 1
    assert len({got.headers["webhook-id"] for got in there.requests}) == 1
    assert len(there.requests) == 2
    waiting = await client.post("/v1/redeliveries", json={"filter": {}})
    cancelled = await client.post(waiting.json()["links"]["cancel"])
    assert cancelled.json()["state"] == "cancelled"
    listed = (await client.get("/v1/redeliveries")).json()["data"]
    assert [row["id"] for row in listed] == [waiting.json()["id"], done["id"]]
    stranger = await client_of(Role.ADMIN, "other")
    assert (await stranger.get(where)).status_code == 404
    assert (await stranger.post(path, json=asked)).status_code == 404


async def test_nothing_is_sent_again_to_a_disabled_webhook(client: httpx.AsyncClient) -> None:
    webhook = await made(client, enabled=False)
    refused = await client.post(f"{webhook['links']['self']}/redeliver")
    assert refused.status_code == 409
    assert "enabled" in refused.json()["detail"]


async def test_during_a_rotation_a_callback_is_signed_with_both_secrets(
    client: httpx.AsyncClient, db: Pool
) -> None:
    old = (await client.get("/v1/callback-secret")).json()["secret"]
    new = (await client.post("/v1/callback-secret/rotate")).json()["secret"]
    async with receiver() as there:
        async with db.acquire() as connection:
            await connection.execute(
                "INSERT INTO outbox (tenant_id, url, type, data)"
                " VALUES (1, $1, 'job.settled', '{}')",
                there.url,
            )
        assert await Deliverer(db, Wire(LOCAL)).deliver_due() == 1
    (got,) = there.requests
    for secret in (old, new):
        assert Webhook(secret).verify(got.body, got.headers)["type"] == "job.settled"
