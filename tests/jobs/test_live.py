"""Nudges: one message tells of everything that a commit changed."""

from uuid import uuid4

import anyio
import pytest

from jobs.live import LiveStream, Signal
from runtime.redis import Client

pytestmark = pytest.mark.anyio


async def test_one_message_names_all_jobs_and_batches_of_a_commit(redis: Client) -> None:
    live = LiveStream(redis)
    jobs, batches = [uuid4() for _ in range(500)], [uuid4()]
    received: list[Signal] = []
    subscribed = anyio.Event()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                async for signal in live.signals(subscribed.set):
                    received.append(signal)
                    tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await subscribed.wait()
            await live.changed(7, jobs, batches)
    (signal,) = received
    assert (signal.type, signal.tenant_id) == ("changed", 7)
    assert signal.touched == {id_.bytes for id_ in (*jobs, *batches)}
