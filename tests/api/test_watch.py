"""The hub: one subscription, and nobody who waits for longer than it takes."""

import anyio
import pytest

from api.watch import Hub
from jobs.live import LiveStream
from jobs.model import DEFAULT_TENANT
from runtime.ids import uuid7
from runtime.redis import Client

pytestmark = pytest.mark.anyio


async def test_watchers_look_again_once_redis_has_subscribed_the_process(redis: Client) -> None:
    hub, job_id = Hub(LiveStream(redis)), uuid7()
    with anyio.fail_after(20), hub.watch(DEFAULT_TENANT, job_id) as watcher:
        assert not hub.is_subscribed
        async with anyio.create_task_group() as group:
            group.start_soon(hub.run)
            await watcher.wait(20)
            while not hub.is_subscribed:
                await watcher.wait(20)
            # Whatever is missed while the line is cut, is looked for when it is back.
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            watcher.take()
            await watcher.wait(20)
            assert watcher.take() == (True, [])
            group.cancel_scope.cancel()
