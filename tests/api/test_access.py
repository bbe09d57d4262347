"""Keys: who gets in, what a role may do, and that a tenant sees only its own."""

import stat
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI

from api import keys
from api.keys import NewKey, Role, ensure_admin_key, split_key
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.conftest import ClientOf, http_client

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer nonsense",
        "Bearer xnai_abc",
        "Bearer xnai__x",
        "Bearer xnai_000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "Bearer " + "x" * 5000,
    ],
)
async def test_no_valid_key_is_401_with_a_challenge(
    anonymous: httpx.AsyncClient, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = await anonymous.get("/v1/jobs", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == 401


async def test_a_key_is_asked_for_before_path_query_and_body_are_looked_at(
    anonymous: httpx.AsyncClient,
) -> None:
    for method, path in [("GET", "/v1/nothing"), ("POST", "/v1/jobs"), ("PUT", "/v1/jobs?x=1")]:
        assert (await anonymous.request(method, path, content=b"{")).status_code == 401


async def test_the_right_prefix_with_another_secret_is_401(
    app: FastAPI, db: Pool, anonymous: httpx.AsyncClient
) -> None:
    async with db.acquire() as connection:
        _, text = await keys.create_key(connection, NewKey("a", Role.ADMIN))
    forged = text[:-1] + ("A" if text[-1] != "A" else "B")
    response = await anonymous.get("/v1/jobs", headers={"Authorization": f"Bearer {forged}"})
    assert response.status_code == 401


async def test_the_secret_is_not_in_the_database(db: Pool) -> None:
    async with db.acquire() as connection:
        _, text = await keys.create_key(connection, NewKey("a", Role.READER))
        parts = split_key(text)
        assert parts is not None
        row = await connection.fetchval(
            "SELECT api_keys::text FROM api_keys WHERE prefix = $1", parts[0]
        )
    assert parts[1] not in row
    assert parts[1].encode().hex() not in row


async def test_an_expired_and_a_revoked_key_are_401(
    app: FastAPI, db: Pool, client: httpx.AsyncClient
) -> None:
    async with db.acquire() as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        _, expired = await keys.create_key(connection, NewKey("old", Role.ADMIN, expires_at=past))
    made = (await client.post("/v1/keys", json={"name": "gone", "role": "reader"})).json()
    async with http_client(app, {"Authorization": f"Bearer {made['key']}"}) as other:
        assert (await other.get("/v1/jobs")).status_code == 200
        assert (await client.delete(f"/v1/keys/{made['id']}")).status_code == 204
        assert (await other.get("/v1/jobs")).status_code == 401
    async with http_client(app, {"Authorization": f"Bearer {expired}"}) as other:
        assert (await other.get("/v1/jobs")).status_code == 401


async def test_revoking_is_idempotent_and_never_ends_the_key_that_asks(
    client: httpx.AsyncClient,
) -> None:
    made = (await client.post("/v1/keys", json={"name": "gone"})).json()
    for _ in range(2):
        assert (await client.delete(f"/v1/keys/{made['id']}")).status_code == 204
    own = next(k for k in (await client.get("/v1/keys")).json()["data"] if k["name"] == "admin")
    assert (await client.delete(f"/v1/keys/{own['id']}")).status_code == 409


_NEEDS = [
    (Role.READER, "GET", "/v1/jobs", None),
    (Role.READER, "GET", "/v1/schedules", None),
    (Role.SUBMITTER, "POST", "/v1/jobs", {"kind": "embed", "payload": {"texts": ["a"]}}),
    (Role.SUBMITTER, "POST", "/v1/batches", {"state": "open"}),
    (Role.OPERATOR, "POST", "/v1/jobs", {"kind": "probe", "payload": {}}),
    (Role.OPERATOR, "GET", "/v1/pools", None),
    (Role.OPERATOR, "GET", "/v1/workers", None),
    (Role.OPERATOR, "POST", "/v1/pools/embed/pause", {}),
    (Role.OPERATOR, "PUT", "/v1/limits/k", {"concurrency": 1}),
    (Role.OPERATOR, "GET", "/v1/callback-secret", None),
    (Role.ADMIN, "GET", "/v1/keys", None),
    (Role.ADMIN, "POST", "/v1/keys", {"name": "x"}),
]


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_may_do_its_own_and_no_more(client_of: ClientOf, role: Role) -> None:
    client = await client_of(role)
    for needed, method, path, body in _NEEDS:
        response = await client.request(method, path, json=body)
        allowed = response.status_code in {200, 201, 202}
        assert allowed == (role >= needed), (method, path, response.text)
        if not allowed:
            assert response.status_code == 403
            assert "the role" in response.json()["detail"]


async def test_another_tenants_objects_are_404(client_of: ClientOf) -> None:
    ours, theirs = await client_of(), await client_of(Role.ADMIN, "other")
    job = (await ours.post("/v1/jobs", json={"kind": "embed", "payload": {"texts": ["a"]}})).json()
    batch = (await ours.post("/v1/batches", json={"state": "open"})).json()
    schedule = (
        await ours.post(
            "/v1/schedules",
            json={
                "name": "s",
                "every_s": 60,
                "job": {"kind": "embed", "payload": {"texts": ["a"]}},
            },
        )
    ).json()
    paths = [
        ("GET", f"/v1/jobs/{job['id']}"),
        ("GET", f"/v1/jobs/{job['id']}/attempts"),
        ("GET", f"/v1/jobs/{job['id']}/events"),
        ("POST", f"/v1/jobs/{job['id']}/cancel"),
        ("POST", f"/v1/jobs/{job['id']}/retry"),
        ("GET", f"/v1/batches/{batch['id']}"),
        ("GET", f"/v1/batches/{batch['id']}/results"),
        ("GET", f"/v1/batches/{batch['id']}/events"),
        ("POST", f"/v1/batches/{batch['id']}/seal"),
        ("POST", f"/v1/batches/{batch['id']}/cancel"),
        ("GET", f"/v1/schedules/{schedule['id']}"),
        ("DELETE", f"/v1/schedules/{schedule['id']}"),
    ]
    for method, path in paths:
        assert (await theirs.request(method, path)).status_code == 404, (method, path)
    patched = await theirs.patch(f"/v1/jobs/{job['id']}", json={"priority": 9})
    assert patched.status_code == 404
    for path in ("/v1/jobs", "/v1/batches", "/v1/schedules"):
        assert (await theirs.get(path)).json()["data"] == []
    assert (await ours.get(f"/v1/jobs/{job['id']}")).json()["priority"] == 4


async def test_only_the_default_tenants_admin_makes_keys_of_other_tenants(
    client_of: ClientOf,
) -> None:
    theirs = await client_of(Role.ADMIN, "other")
    assert (
        await theirs.post("/v1/keys", json={"name": "x", "tenant": "default"})
    ).status_code == 403
    made = await (await client_of()).post("/v1/keys", json={"name": "x", "tenant": "third"})
    assert made.status_code == 201
    assert made.json()["tenant"] == "third"


async def test_the_first_start_writes_a_private_admin_key_and_the_next_ones_keep_it(
    db: Pool, settings: Settings, app: FastAPI
) -> None:
    async with db.acquire() as connection:
        path = await ensure_admin_key(connection, settings)
        first = path.read_text()
        await ensure_admin_key(connection, settings)
        assert path.read_text() == first
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.write_text("xnai_broken_key\n")
        await ensure_admin_key(connection, settings)
    text = path.read_text().strip()
    async with http_client(app, {"Authorization": f"Bearer {text}"}) as client:
        assert (await client.get("/v1/keys")).status_code == 200


async def test_last_use_is_written_beside_the_requests(
    app: FastAPI, db: Pool, client: httpx.AsyncClient
) -> None:
    await client.get("/v1/jobs")
    await app.state.services.authenticator.write_last_uses()
    used = await db.fetchval("SELECT last_used_at FROM api_keys WHERE name = 'admin'")
    assert used is not None
