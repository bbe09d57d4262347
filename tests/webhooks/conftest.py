"""Webhooks on a real database, with the guard's loopback opened for the receivers of the tests."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

import pytest

from jobs.model import DEFAULT_TENANT, JsonObject, TenantId
from runtime.egress import EgressPolicy
from runtime.postgres import Connection, Pool
from webhooks import callback_secrets, deliveries, endpoints
from webhooks.deliver import Deliverer
from webhooks.endpoints import EndpointSpec
from webhooks.lanes import Lanes
from webhooks.model import Delivery, DeliveryAttempt, Endpoint
from webhooks.sign import Secret
from webhooks.wire import Wire

LOCAL = EgressPolicy(("127.0.0.0/8",))


async def owe_event(
    connection: Connection, endpoint: Endpoint, *, now: datetime | None = None
) -> UUID:
    """An event, as the fan-out writes it."""
    found: UUID = await connection.fetchval(
        "INSERT INTO outbox (tenant_id, endpoint_id, url, type, data, occurred_at, due_at)"
        " VALUES ($1, $2, $3, 'job.failed', '{}', coalesce($4, now()), coalesce($4, now()))"
        " RETURNING id",
        endpoint.tenant_id, endpoint.id, endpoint.url, now,
    )  # fmt: skip
    return found


@dataclass(slots=True)
class Post:
    """What a test of deliveries needs."""

    pool: Pool
    deliverer: Deliverer

    def another(self, *, total: int = 128) -> Deliverer:
        """One more deliverer, as of another process."""
        return Deliverer(self.pool, self.deliverer.wire, rng=random.Random(2), lanes=Lanes(total))

    async def owe(
        self, url: str, *, tenant_id: TenantId = DEFAULT_TENANT, now: datetime | None = None
    ) -> UUID:
        """A callback, as the ledger writes it."""
        data: JsonObject = {"id": str(uuid4()), "state": "succeeded"}
        async with self.pool.acquire() as connection:
            found: UUID = await connection.fetchval(
                "INSERT INTO outbox (tenant_id, url, type, data, occurred_at, due_at)"
                " VALUES ($1, $2, 'job.settled', $3, coalesce($4, now()), coalesce($4, now()))"
                " RETURNING id",
                tenant_id, url, data, now,
            )  # fmt: skip
        return found

    async def endpoint(
        self, url: str, *events: str, now: datetime | None = None
    ) -> tuple[Endpoint, Secret]:
        async with self.pool.acquire() as connection:
            return await endpoints.create(
                connection, DEFAULT_TENANT, EndpointSpec(url, events or ("*",)),
                policy=LOCAL, now=now,
            )  # fmt: skip

    async def get(self, delivery_id: UUID) -> tuple[Delivery, list[DeliveryAttempt]]:
        async with self.pool.acquire() as connection:
            return await deliveries.get(connection, DEFAULT_TENANT, delivery_id)

    async def callback_secret(self) -> Secret:
        async with self.pool.acquire() as connection:
            return (await callback_secrets.get(connection, DEFAULT_TENANT)).secret


@pytest.fixture
async def post(db: Pool) -> AsyncIterator[Post]:
    wire = Wire(LOCAL)
    yield Post(db, Deliverer(db, wire, rng=random.Random(1)))
    await wire.aclose()
