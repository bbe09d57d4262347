"""What one tenant's receivers may be, deliveries learn as they leave."""

from contextlib import aclosing

import pytest

from jobs import tenant_egress
from jobs.model import DEFAULT_TENANT
from runtime.egress import EgressPolicy
from tests.webhooks.conftest import Post
from tests.webhooks.receiver import receiver
from webhooks.deliver import Deliverer
from webhooks.wire import Wire

pytestmark = pytest.mark.anyio


async def test_tenant_is_called_where_it_was_allowed_until_that_is_taken_away(post: Post) -> None:
    async with receiver() as found, aclosing(Wire(EgressPolicy())) as wire:
        deliverer = Deliverer(post.pool, wire)
        states = []
        for verb in ("nothing", "allow", "remove"):
            async with post.pool.acquire() as connection:
                if verb == "allow":
                    await tenant_egress.allow(connection, DEFAULT_TENANT, "127.0.0.0/8")
                elif verb == "remove":
                    await tenant_egress.remove(connection, DEFAULT_TENANT, "127.0.0.0/8")
            delivery_id = await post.owe(found.url)
            await deliverer.deliver_due()
            delivery, attempts = await post.get(delivery_id)
            states.append((delivery.state.value, attempts[-1].answer.error_type))
        assert states == [("dead", "blocked"), ("delivered", None), ("dead", "blocked")]
        assert len(found.requests) == 1
