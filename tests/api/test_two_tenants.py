"""Two tenants: one has one of everything, and the other names all of it in every operation that the
OpenAPI document knows. It must learn nothing, change nothing, and not even see that it exists.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from api import keys
from api.keys import NewKey, Role
from corpus import documents
from corpus.model import Page
from jobs import events
from jobs.events import EventScope
from jobs.model import TenantId
from jobs.outcomes import Failed, Problem
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.api.conftest import ClientOf
from tests.api.live_server import running
from tests.api.operations import OPERATIONS, Operation, Place, Sent, World, places
from tests.api.slot import register
from tests.support.corpus import Desk

pytestmark = pytest.mark.anyio

CANARY = "canary7f3a"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_SECRET = re.compile(r"(whsec|xnai)_[A-Za-z0-9+/=_-]+|(?<=\"prefix\":\")[0-9a-f]{12}")
_NUMBER = re.compile(r'("(?:oldest_s|took_ms)":|\bretry: )[0-9.]+')
_VOLATILE = {"last_used_at", "took_ms", "oldest_s"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Streams end by themselves: ASGITransport holds them back until then."""
    return settings.model_copy(update={"stream_max_s": 0.3, "wait_max_s": 0.1})


@dataclass(slots=True)
class Tenant:
    """A tenant's admin, what it has, and every text that nobody else may see."""

    client: httpx.AsyncClient
    id: TenantId
    world: World
    hidden: set[str]
    event: str


@pytest.fixture
async def ours(app: FastAPI, db: Pool, client_of: ClientOf) -> Tenant:
    """A tenant with one of everything."""
    name = f"acme-{CANARY}"
    client = await client_of(Role.ADMIN, name)
    async with db.acquire() as connection:
        tenant_id = await keys.find_tenant(connection, name)
    assert tenant_id is not None
    hidden: set[str] = {CANARY, client.headers["authorization"].split("_")[2]}

    async def made(path: str, body: object = None, **more: Any) -> dict[str, Any]:
        response = await client.post(f"/v1/{path}", json=body, **more)
        assert response.is_success, (path, response.text)
        return dict(response.json())

    def job(**more: object) -> dict[str, object]:
        return {"kind": "embed", "payload": {"texts": [f"text {CANARY}"]}, **more}

    blank = World()
    words = {
        "tags": [blank.tag],
        "unique": {"key": blank.unique_key},
        "concurrency_key": blank.concurrency_key,
    }
    doomed = await made("jobs", job(tags=[blank.tag]))
    slot = await register(db, app.state.services.live, "embed")
    problem = Problem(blank.error_type, CANARY, retryable=False)
    await slot.end(await slot.claim(), Failed(problem))
    submitted = await made("jobs", job(**words), headers={"Idempotency-Key": blank.idempotency_key})
    batch = await made("batches", {"jobs": [job(custom_id=blank.custom_id)]})
    open_batch = await made("batches", {"state": "open"})
    part = {"jobs": [job(custom_id=blank.custom_id)]}
    await made(f"batches/{open_batch['id']}/jobs", part, params={"part": blank.part})
    schedule = await made(
        "schedules", {"name": blank.schedule_name, "every_s": 60, "job": job(tags=[CANARY])}
    )
    webhook = await made(
        "webhooks",
        {"url": f"https://{CANARY}.example.org/", "events": ["*"], "description": CANARY},
    )
    delivery = await made(f"webhooks/{webhook['id']}/test")
    redelivery = await made("redeliveries", {"filter": {"webhook_id": webhook["id"]}})
    chosen = {"tag": f"none-{CANARY}"}
    operation = await made("operations", {"action": "discard", "filter": chosen})
    key = await made("keys", {"name": f"key {CANARY}"})
    await client.put(f"/v1/limits/{blank.concurrency_key}", json={"concurrency": 7})
    document = await _document(db, tenant_id, blank)
    async with db.acquire() as connection:
        found = await events.after(connection, EventScope(tenant_id), None)
    hidden |= {webhook["secret"], key["key"], key["prefix"], str(document)}
    world = World(
        **{
            **blank.values(),
            "tenant": name,
            "job": submitted["id"],
            "failed_job": doomed["id"],
            "batch": batch["id"],
            "open_batch": open_batch["id"],
            "schedule": schedule["id"],
            "webhook": webhook["id"],
            "delivery": delivery["delivery_id"],
            "redelivery": redelivery["id"],
            "operation": operation["id"],
            "document": str(document),
            "key": key["id"],
        }
    )
    return Tenant(client, tenant_id, world, hidden | set(world.values().values()), found[0].cursor)


async def _document(db: Pool, tenant_id: TenantId, world: World) -> UUID:
    url = f"https://{CANARY}.example.org/page"
    page = Page(world.document_key, f"words {CANARY}", url, CANARY, (world.tag,))
    async with db.acquire() as connection, connection.transaction():
        put = await documents.put_page(connection, tenant_id, world.collection, page)
    return put.document_id


@pytest.fixture
async def document(anonymous: httpx.AsyncClient) -> Mapping[str, Any]:
    return dict((await anonymous.get("/openapi.json")).json())


@pytest.fixture
async def theirs(client_of: ClientOf) -> httpx.AsyncClient:
    return await client_of(Role.ADMIN, "other")


async def test_a_tenant_learns_and_changes_nothing_of_another_by_any_operation(
    ours: Tenant,
    theirs: httpx.AsyncClient,
    document: Mapping[str, Any],
    anonymous: httpx.AsyncClient,
    db: Pool,
) -> None:
    before = await _everything(ours)
    nobody, stored = World(), set[str]()
    with capture_logs() as logs:
        for name, place in places(document).items():
            await _ask_all(name, place, ours, nobody, theirs, stored)
    assert await _everything(ours) == before
    written = json.dumps(logs, default=str)
    metrics = (await anonymous.get("/metrics")).text
    for text in ours.hidden:
        assert text not in metrics
    assert CANARY not in written.replace(ours.world.tenant, "")
    async with db.acquire() as connection:
        tenant_id = await keys.find_tenant(connection, "other")
        assert tenant_id is not None
        # The other's events after our first: none of ours, though they come from one table.
        seen = await events.after(connection, EventScope(tenant_id), ours.event, 500)
        own = await events.after(connection, EventScope(ours.id), None, 500)
    assert own
    assert not {e.job_id for e in seen} & {e.job_id for e in own}


async def _ask_all(
    name: str,
    place: Place,
    ours: Tenant,
    nobody: World,
    theirs: httpx.AsyncClient,
    stored: set[str],
) -> None:
    """Ask for what is ours and for what is nobody's: the answers must be the same, word for word,
    but for the names that were asked for.
    """
    operation = OPERATIONS[name]
    for of_ours, of_nobody in zip(operation.sent(ours.world), operation.sent(nobody), strict=True):
        cursors = {"Last-Event-ID": ours.event} if name == "stream_events" else {}
        answer = await _ask(theirs, place, operation, ours.world, of_ours, cursors)
        expected = await _ask(theirs, place, operation, nobody, of_nobody, cursors)
        told = (name, of_ours, answer.status_code, answer.text)
        # What they stored under a name of ours, they stored under the other name, too.
        worlds = (ours.world, nobody)
        assert _normal(answer, worlds) == _normal(expected, worlds), told
        sent = f"{answer.request.url} {json.dumps(of_ours.json)} {of_ours.headers} {cursors}"
        shown = f"{answer.headers} {answer.text}"
        if answer.is_success:
            stored |= {v for v in ours.hidden if v in json.dumps(of_ours.json)}
        leaked = {v for v in ours.hidden if v in shown and v not in sent and v not in stored}
        assert not leaked, told
        assert answer.status_code < 500 or name == "search_passages", told
        if "{" in place.path and not operation.of_installation and name != "set_limit":
            assert answer.status_code in {403, 404}, told


async def _ask(
    client: httpx.AsyncClient,
    place: Place,
    operation: Operation,
    world: World,
    sent: Sent,
    cursors: Mapping[str, str],
) -> httpx.Response:
    return await client.request(
        place.method,
        place.with_names(operation, world),
        params=sent.params,
        json=sent.json,
        headers={**sent.headers, **cursors},
    )


def _normal(response: httpx.Response, worlds: Iterable[World]) -> tuple[int, str]:
    """An answer without what two equal requests may differ in."""
    text = f"{response.headers.get('location', '')} {response.text}"
    for name, value in [item for world in worlds for item in world.values().items()]:
        text = text.replace(value, f"<{name}>")
    text = _NUMBER.sub(r"\1<number>", text)
    for pattern, word in ((_UUID, "<id>"), (_TIME, "<time>"), (_SECRET, "<secret>")):
        text = pattern.sub(word, text)
    return response.status_code, text


async def _everything(tenant: Tenant) -> dict[str, object]:
    """All that the tenant's own admin sees of what it has."""
    w = tenant.world
    paths = [
        *(f"jobs/{w.job}", f"jobs/{w.failed_job}", "jobs", "batches", f"batches/{w.batch}"),
        *(f"batches/{w.open_batch}", f"batches/{w.open_batch}/parts", "schedules"),
        *(f"schedules/{w.schedule}", f"webhooks/{w.webhook}", f"deliveries/{w.delivery}"),
        *(f"operations/{w.operation}", f"redeliveries/{w.redelivery}", "limits", "keys"),
        *(f"documents/{w.document}", "collections", "audit", "quotas"),
    ]
    found = {}
    for path in paths:
        response = await tenant.client.get(f"/v1/{path}")
        assert response.status_code == 200, (path, response.text)
        found[path] = _stable(response.json())
    return found


def _stable(value: Any) -> object:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in _VOLATILE}
    return [_stable(v) for v in value] if isinstance(value, list) else value


async def test_every_operation_is_in_the_table_and_a_world_has_whatever_a_path_names(
    document: Mapping[str, Any],
) -> None:
    assert set(places(document)) == set(OPERATIONS)
    for name, place in places(document).items():
        assert place.with_names(OPERATIONS[name], World())
    assert all(f.default_factory for f in fields(World))


@pytest.mark.model
async def test_no_search_finds_another_tenants_passages(
    db: Pool, redis: Client, settings: Settings
) -> None:
    """Through HTTP and the real index: by name, by id, by address, and where names are the same."""
    url = f"https://{CANARY}.example.org/page"
    desk = Desk(db, redis, settings)
    (found,) = await desk.publish({url: f"Cats hunt at night, says {CANARY}."}, collection="pages")
    async with db.acquire() as connection, connection.transaction():
        tenant_id = await keys.tenant_of_name(connection, "other")
        _, text = await keys.create_key(connection, NewKey("theirs", Role.ADMIN, tenant_id))
        page = Page("own", "nothing here", "https://example.org/", "own")
        await documents.put_page(connection, tenant_id, "pages", page)
    filters: list[dict[str, object]] = [
        {},
        {"filter": {"document_ids": [str(found)]}},
        {"filter": {"url_prefix": url}},
    ]
    async with (
        running(settings, "search-server") as (address, ours),
        httpx.AsyncClient(base_url=address, timeout=60) as client,
    ):
        for more, mode in itertools.product(filters, ("hybrid", "vector", "text")):
            query = {"query": "cats hunt", "collection": "pages", "mode": mode, **more}
            for key, is_owner in ((ours, True), (text, False)):
                headers = {"Authorization": f"Bearer {key}"}
                answer = await client.post("/v1/search", json=query, headers=headers)
                assert answer.status_code == 200, answer.text
                hits = [hit["document"]["id"] for hit in answer.json()["hits"]]
                assert hits == ([str(found)] if is_owner else [])
