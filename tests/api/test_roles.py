"""Which role may do what: the table says it, the OpenAPI document tells it, the API keeps it."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from api.keys import Role
from runtime.settings import Settings
from tests.api.conftest import ClientOf
from tests.api.operations import OPERATIONS, World, places

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Streams end by themselves: ASGITransport holds them back until then."""
    return settings.model_copy(update={"stream_max_s": 0.05, "wait_max_s": 0.05})


@pytest.fixture
async def document(anonymous: httpx.AsyncClient) -> Mapping[str, Any]:
    return dict((await anonymous.get("/openapi.json")).json())


async def test_the_document_tells_the_role_of_every_operation(document: Mapping[str, Any]) -> None:
    told = {
        operation["operationId"]: (operation["x-required-role"], operation["x-of-installation"])
        for path, item in document["paths"].items()
        for operation in item.values()
        if path.startswith("/v1")
    }
    wanted = {name: (op.role.label, op.of_installation) for name, op in OPERATIONS.items()}
    assert told == wanted


@pytest.mark.parametrize("tenant", [None, "other"])
@pytest.mark.parametrize("role", list(Role))
async def test_a_role_does_its_own_and_no_more_by_any_operation(
    client_of: ClientOf, document: Mapping[str, Any], role: Role, tenant: str | None
) -> None:
    client = await client_of(role, tenant)
    for name, place in places(document).items():
        operation = OPERATIONS[name]
        sent = operation.sent(World())[0]
        response = await client.request(
            place.method,
            place.with_names(operation, World()),
            params=sent.params,
            json=sent.json,
            headers=sent.headers,
        )
        is_allowed = role >= operation.role and not (operation.of_installation and tenant)
        assert response.status_code != 401, name
        assert (response.status_code == 403) is not is_allowed, (name, response.text)


async def test_a_pool_shows_other_tenants_only_their_own_jobs(client_of: ClientOf) -> None:
    ours, theirs = await client_of(Role.ADMIN), await client_of(Role.OPERATOR, "other")
    job = {"kind": "embed", "payload": {"texts": ["a"]}}
    for client in (ours, ours, theirs):
        assert (await client.post("/v1/jobs", json=job)).status_code == 202
    await ours.post("/v1/pools/embed/pause", json={"reason": "maintenance"})
    for client, queued, by in ((ours, 3, "admin"), (theirs, 1, None)):
        pools = {p["name"]: p for p in (await client.get("/v1/pools")).json()["data"]}
        assert pools["embed"]["queued"] == queued
        assert pools["embed"]["paused_reason"] == "maintenance"
        assert pools["embed"]["paused_by"] == by
        assert pools["embed"]["oldest_s"] >= 0
        assert pools["crawl"]["queued"] == 0
        assert pools["crawl"]["oldest_s"] is None
