"""Webhooks on a real database, with the guard's loopback opened for the receivers of the tests."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

import pytest

from jobs.model import DEFAULT_TENANT, JsonObject, TenantId
from runtime.egress import EgressPolicy
from runtime.postgres import Pool
from webhooks import endpoints, outbox
from webhooks.deliver import Deliverer, open_client
from webhooks.endpoints import EndpointSpec
from webhooks.lanes import Lanes
from webhooks.model import Delivery, DeliveryAttempt, Endpoint
from webhooks.sign import Secret

LOCAL = EgressPolicy(("127.0.0.0/8",))


@dataclass(slots=True)
class Post:
    """What a test of deliveries needs."""

    pool: Pool
    deliverer: Deliverer

    def another(self, *, total: int = 128, per_host: int = 4) -> Deliverer:
        """One more deliverer, as of another process."""
        return Deliverer(self.pool, self.deliverer.client, random.Random(2), Lanes(total, per_host))

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
            return await outbox.get_delivery(connection, DEFAULT_TENANT, delivery_id)

    async def callback_secret(self) -> Secret:
        async with self.pool.acquire() as connection:
            return await endpoints.callback_secret(connection, DEFAULT_TENANT)


@pytest.fixture
async def post(db: Pool) -> AsyncIterator[Post]:
    async with open_client(LOCAL) as client:
        yield Post(db, Deliverer(db, client, random.Random(1)))
