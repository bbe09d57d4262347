"""Time: delays and expiry."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from jobs import ledger
from jobs.model import DEFAULT_TENANT
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio

TOMORROW = datetime.now(UTC) + timedelta(days=1)


async def test_two_sweepers_promote_each_job_once(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe(delay_s=60) for _ in range(200)))
    promoted: list[object] = []

    async def sweep() -> None:
        async with desk.pool.acquire() as connection:
            while ready := await ledger.promote_due(connection, 13, now=TOMORROW):
                promoted.extend(ready["probe"])

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(sweep)
    assert sorted(promoted, key=str) == [job.id for job in accepted]


async def test_who_waits_too_long_fails_and_who_runs_does_not(desk: Desk) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    running, queued, parked = await desk.enqueue(
        probe(expires_at=soon, priority=9),
        probe(expires_at=soon),
        probe(expires_at=soon, delay_s=3600),
    )
    await desk.claim(await desk.slot(), 1)
    async with desk.pool.acquire() as connection:
        assert (await ledger.expire(connection, 10)).expired == ()
        expired = await ledger.expire(connection, 10, now=TOMORROW)
    assert set(expired.expired) == {queued.id, parked.id}
    assert await desk.states(running.id, queued.id) == ["running", "failed"]
    error = (await desk.get(queued.id)).error
    assert error is not None
    assert error["type"] == "expired"


async def test_cancel_finds_a_job_that_is_being_promoted(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe(delay_s=60) for _ in range(50)))
    ids = [job.id for job in accepted]
    async with anyio.create_task_group() as tasks, desk.pool.acquire() as sweeper:
        transaction = sweeper.transaction()
        await transaction.start()
        await ledger.promote_due(sweeper, 100, now=TOMORROW)

        async def cancel() -> None:
            async with desk.pool.acquire() as connection:
                result = await ledger.cancel(connection, DEFAULT_TENANT, ids)
            assert set(result.cancelled) == set(ids)

        tasks.start_soon(cancel)
        async with desk.pool.acquire() as other:
            while not await other.fetch("SELECT 1 FROM pg_locks WHERE NOT granted"):
                await anyio.lowlevel.checkpoint()
        await transaction.commit()
    assert await desk.states(*ids) == ["cancelled"] * 50
