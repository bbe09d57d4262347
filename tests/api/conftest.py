"""The API in this process, on the session's real Postgres and Valkey, asked through ASGI."""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI

from api import keys
from api.app import create_app
from api.keys import NewKey, Role
from jobs.model import DEFAULT_TENANT
from runtime.postgres import Pool
from runtime.settings import Settings

type ClientOf = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def app(settings: Settings, db: Pool) -> AsyncIterator[FastAPI]:
    """A started application."""
    del db
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client_of(app: FastAPI, db: Pool) -> AsyncIterator[ClientOf]:
    """Makes a client with a key of a role, optionally of another tenant."""
    opened: list[httpx.AsyncClient] = []

    async def make(role: Role = Role.ADMIN, tenant: str | None = None) -> httpx.AsyncClient:
        async with db.acquire() as connection, connection.transaction():
            tenant_id = DEFAULT_TENANT
            if tenant is not None:
                tenant_id = await keys.tenant_of_name(connection, tenant)
            _, text = await keys.create_key(connection, NewKey(role.label, role, tenant_id))
        opened.append(http_client(app, {"Authorization": f"Bearer {text}"}))
        return opened[-1]

    yield make
    for client in opened:
        await client.aclose()


@pytest.fixture
async def client(client_of: ClientOf) -> httpx.AsyncClient:
    """An admin of the tenant `default`."""
    return await client_of()


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with http_client(app, {}) as client:
        yield client


def http_client(app: FastAPI, headers: dict[str, str]) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(
        transport=transport, base_url="http://api", headers=headers, timeout=60
    )
