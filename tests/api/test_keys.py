"""The life of a key: rotated, revoked, guessed at; and what an open stream makes of it."""

import hmac
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest
from fastapi import FastAPI

from api import auth, guesses, keys
from api.auth import Authenticator, Principal
from api.errors import Problem, ProblemType
from api.guesses import Guesses
from api.keys import NewKey, Role
from api.quotas import Quotas
from jobs.model import DEFAULT_TENANT
from runtime.ids import uuid7
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.conftest import http_client
from tests.api.live_server import running

pytestmark = pytest.mark.anyio


def client_with(app: FastAPI, key: str) -> httpx.AsyncClient:
    return http_client(app, {"Authorization": f"Bearer {key}"})


async def status_with(app: FastAPI, key: str) -> int:
    async with client_with(app, key) as client:
        return (await client.get("/v1/jobs")).status_code


async def made(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await client.post("/v1/keys", json={"name": "a key", **fields})
    assert response.status_code == 201, response.text
    return dict(response.json())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def known_key(db: Pool, clock: Clock) -> tuple[Authenticator, UUID, str]:
    """An authenticator that has let a key in just now, the key's id, and its header."""
    async with db.acquire() as connection:
        key_id, text = await keys.create_key(connection, NewKey("a", Role.READER))
    authenticator, header = Authenticator(db, clock), f"Bearer {text}"
    await authenticator.authenticate(header, "a")
    return authenticator, key_id, header


async def test_a_rotated_key_has_two_secrets_for_a_while(
    app: FastAPI, client: httpx.AsyncClient, db: Pool
) -> None:
    old = await made(client, role="reader")
    rotated = (await client.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 60})).json()
    assert (rotated["id"], rotated["prefix"]) == (old["id"], old["prefix"])
    assert rotated["key"] != old["key"]
    assert rotated["rotations"] == 1
    for key in (old["key"], rotated["key"]):
        assert await status_with(app, key) == 200
    await db.execute("UPDATE api_keys SET previous_until = now() WHERE id = $1", old["id"])
    app.state.services.authenticator._known.clear()
    assert await status_with(app, old["key"]) == 401
    assert await status_with(app, rotated["key"]) == 200


async def test_a_rotation_without_overlap_ends_the_old_secret_at_once(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    old = await made(client)
    assert await status_with(app, old["key"]) == 200
    rotated = (await client.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 0})).json()
    assert await status_with(app, old["key"]) == 401
    assert await status_with(app, rotated["key"]) == 200


async def test_a_second_rotation_ends_the_secret_before_the_last(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    first = await made(client)
    second, third = [
        (await client.post(f"/v1/keys/{first['id']}/rotate")).json()["key"] for _ in range(2)
    ]
    statuses = [await status_with(app, key) for key in (first["key"], second, third)]
    assert statuses == [401, 200, 200]


async def test_an_ended_key_is_not_rotated(client: httpx.AsyncClient) -> None:
    old = await made(client)
    await client.delete(f"/v1/keys/{old['id']}")
    assert (await client.post(f"/v1/keys/{old['id']}/rotate")).status_code == 409


async def test_the_installations_admin_looks_after_the_keys_of_a_tenant(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    key = await made(client, tenant="acme", role="admin")
    path, of_acme = f"/v1/keys/{key['id']}", {"tenant": "acme"}
    assert [k["id"] for k in (await client.get("/v1/keys", params=of_acme)).json()["data"]] == [
        key["id"]
    ]
    assert (await client.delete(path)).status_code == 404
    assert (await client.get("/v1/keys", params={"tenant": "nobody"})).status_code == 404
    rotated = await client.post(f"{path}/rotate", params=of_acme)
    assert rotated.json()["tenant"] == "acme"
    assert (await client.delete(path, params=of_acme)).status_code == 204
    assert await status_with(app, rotated.json()["key"]) == 401


async def test_a_key_revoked_elsewhere_is_trusted_for_seconds_at_most(
    db: Pool,
) -> None:
    """Another API process writes the row; this one is not told, and its trust runs out."""
    clock = Clock()
    authenticator, key_id, header = await known_key(db, clock)
    await db.execute("UPDATE api_keys SET revoked_at = now() WHERE id = $1", key_id)
    clock.now += auth.FRESH_S - 0.01
    await authenticator.authenticate(header, "a")
    clock.now += 0.02
    with pytest.raises(Problem) as refused:
        await authenticator.authenticate(header, "a")
    assert refused.value.type is ProblemType.NO_KEY
    assert auth.TRUST_S <= 5


async def test_one_request_asks_again_while_the_others_go_on(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand requests a second must not all ask Postgres when trust runs out."""
    clock = Clock()
    authenticator, _, header = await known_key(db, clock)
    clock.now += auth.FRESH_S
    asked, go_on, find = anyio.Event(), anyio.Event(), keys.find_by_prefix
    count = 0

    async def slowly(*arguments: Any) -> keys.Key | None:
        nonlocal count
        count += 1
        asked.set()
        await go_on.wait()
        return await find(*arguments)

    monkeypatch.setattr(keys, "find_by_prefix", slowly)
    async with anyio.create_task_group() as group:
        group.start_soon(authenticator.authenticate, header, "a")
        await asked.wait()
        for _ in range(10):
            await authenticator.authenticate(header, "a")
        go_on.set()
    assert count == 1


async def test_hashes_are_compared_in_constant_time_for_unknown_prefixes_too(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with db.acquire() as connection:
        _, text = await keys.create_key(connection, NewKey("a", Role.READER))
        parts = keys.split_key(text)
        assert parts is not None
        key = await keys.find_by_prefix(connection, parts[0])
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for known, secret in ((key, parts[1]), (key, "wrong"), (None, "wrong")):
        compared.clear()
        keys.rotation_of(known, secret)
        assert compared == [(32, 32), (32, 32)]


def test_guesses_are_slowed_down_by_source_and_forgiven_with_time() -> None:
    clock = Clock()
    guessed = Guesses(clock)
    for _ in range(guesses.BURST):
        assert guessed.wait_s("address a", "prefix p") == 0
        guessed.failed("address a", "prefix p")
    assert guessed.wait_s("address a", "prefix q") == 1
    assert guessed.wait_s("address b", "prefix p") == 1
    assert guessed.wait_s("address b", "prefix q") == 0
    clock.now += 1
    assert guessed.wait_s("address a", "prefix p") == 0


def test_what_is_kept_of_guesses_is_bounded() -> None:
    guessed = Guesses(Clock())
    for number in range(guesses.ENTRIES_MAX + 10):
        guessed.failed(f"prefix {number}")
    assert len(guessed._buckets) == guesses.ENTRIES_MAX


async def test_a_guesser_is_held_and_who_was_let_in_is_not(
    app: FastAPI, client: httpx.AsyncClient, anonymous: httpx.AsyncClient
) -> None:
    known = await made(client)
    assert await status_with(app, known["key"]) == 200
    wrong = {"Authorization": f"Bearer xnai_{known['prefix']}_{'A' * 43}"}
    answers = [await anonymous.get("/v1/jobs", headers=wrong) for _ in range(2 * guesses.BURST)]
    held = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {401, 429}
    assert held[0].json()["type"] == "urn:xnai:problem:too-many-guesses"
    assert int(held[0].headers["retry-after"]) >= 1
    assert all(known["prefix"] not in answer.text for answer in answers)
    for entry in app.state.services.authenticator._known.values():
        entry.fresh_until = entry.trusted_until = 0.0
    assert await status_with(app, known["key"]) == 200


async def test_a_request_without_a_key_is_no_guess(anonymous: httpx.AsyncClient) -> None:
    statuses = {(await anonymous.get("/v1/jobs")).status_code for _ in range(2 * guesses.BURST)}
    assert statuses == {401}


async def test_open_streams_end_with_their_keys(settings: Settings, db: Pool) -> None:
    """Revoked by a writer that the process does not hear of, rotated away, or expired."""
    endings = (
        "UPDATE api_keys SET revoked_at = now() WHERE id = $1",
        "UPDATE api_keys SET rotations = rotations + 1 WHERE id = $1",
        "UPDATE api_keys SET expires_at = now() WHERE id = $1",
    )
    async with AsyncExitStack() as stack:
        url, admin = await stack.enter_async_context(running(settings))
        headers = {"Authorization": f"Bearer {admin}"}
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30)
        )
        streams = []
        for ending in endings:
            key = await made(client)
            own = {"Authorization": f"Bearer {key['key']}"}
            response = await stack.enter_async_context(
                client.stream("GET", "/v1/events", headers=own)
            )
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("retry")
            streams.append((ending, key["id"], lines))
        kept = await stack.enter_async_context(client.stream("GET", "/v1/events"))
        for ending, key_id, _ in streams:
            await db.execute(ending, key_id)
        with anyio.fail_after(20):
            for _, _, lines in streams:
                async for _ in lines:
                    pass
        assert not kept.is_closed


async def test_streams_are_bounded_for_each_tenant(db: Pool) -> None:
    authenticator = Authenticator(db)
    principal = Principal(
        uuid7(), DEFAULT_TENANT, "default", "a", Role.READER, quotas=Quotas(streams=1)
    )
    with authenticator.stream(principal):
        with pytest.raises(Problem) as refused, authenticator.stream(principal):
            pass
        assert refused.value.headers["Retry-After"]
    with authenticator.stream(principal):
        pass


async def test_a_key_is_not_trusted_beyond_its_end(db: Pool) -> None:
    """Its row says when it ends: nobody has to ask."""
    clock = Clock()
    authenticator, key_id, header = await known_key(db, clock)
    ends_at = datetime.now(UTC) + timedelta(seconds=auth.FRESH_S / 2)
    await db.execute("UPDATE api_keys SET expires_at = $2 WHERE id = $1", key_id, ends_at)
    await authenticator.forget(key_id)
    await authenticator.authenticate(header, "a")
    (known,) = authenticator._known.values()
    assert known.trusted_until < auth.FRESH_S


@pytest.mark.parametrize(("trusted", "seen"), [("", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.7")])
async def test_a_proxys_word_for_an_address_counts_only_if_it_is_trusted(
    settings: Settings, db: Pool, trusted: str, seen: str
) -> None:
    del db
    async with running(settings, XNAI_TRUSTED_PROXIES=trusted) as (url, key):
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": "203.0.113.7"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            await client.put("/v1/limits/k", json={"concurrency": 1})
            (act,) = (await client.get("/v1/audit")).json()["data"]
    assert act["address"] == seen
