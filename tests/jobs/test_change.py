"""Priority, time and tags of live jobs."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from jobs import ledger
from jobs.errors import JobNotFound, StateConflict
from jobs.model import DEFAULT_TENANT
from jobs.results import Ready
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio


async def _change(desk: Desk, job_id: object, **changes: object) -> Ready:
    async with desk.pool.acquire() as connection:
        return await ledger.change(connection, DEFAULT_TENANT, job_id, **changes)  # type: ignore[arg-type]


async def test_a_new_priority_moves_a_job_in_the_queue(desk: Desk) -> None:
    first, second = await desk.enqueue(probe(), probe())
    await _change(desk, second.id, priority=9, tags=["x"])
    assert [job.id for job in await desk.claim(await desk.slot())] == [second.id, first.id]
    job = await desk.get(second.id)
    assert (job.priority, job.tags) == (9, ("x",))


async def test_a_new_time_puts_off_and_brings_forward(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe(concurrency_key="k"))
    (waiting,) = await desk.enqueue(probe(concurrency_key="k"))
    now = datetime.now(UTC)
    ready = await _change(desk, accepted.id, run_at=now + timedelta(hours=1))
    assert ready == {"probe": (waiting.id,)}
    assert await desk.states(accepted.id) == ["scheduled"]
    await _change(desk, waiting.id, run_at=now + timedelta(hours=1))
    assert await _change(desk, accepted.id, run_at=now) == {"probe": (accepted.id,)}


async def test_a_running_job_keeps_its_time_and_a_finished_one_everything(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await _change(desk, accepted.id, priority=9)
    with pytest.raises(StateConflict):
        await _change(desk, accepted.id, run_at=datetime.now(UTC))
    await desk.end(slot, jobs)
    with pytest.raises(StateConflict):
        await _change(desk, accepted.id, priority=1)
    with pytest.raises(JobNotFound):
        await _change(desk, uuid4(), priority=1)
