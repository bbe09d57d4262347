"""Cancelling in every state."""

import pytest

from jobs import ledger, slots
from jobs.model import DEFAULT_TENANT
from jobs.outcomes import Cancelled, Completed, Released
from jobs.results import CancelResult
from tests.jobs.desk import BROKEN, DONE, Desk, probe

pytestmark = pytest.mark.anyio


async def _cancel(desk: Desk, *ids: object) -> CancelResult:
    async with desk.pool.acquire() as connection:
        return await ledger.cancel(connection, DEFAULT_TENANT, ids)  # type: ignore[arg-type]


async def test_waiting_jobs_are_over_at_once(desk: Desk) -> None:
    accepted = await desk.enqueue(
        probe(),
        probe(delay_s=60),
        probe(custom_id="p"),
        probe(depends_on=("p",)),
        probe(concurrency_key="k"),
        probe(concurrency_key="k"),
    )
    ids = [job.id for job in accepted]
    result = await _cancel(desk, *ids)
    assert set(result.cancelled) == set(ids)
    assert await desk.states(*ids) == ["cancelled"] * 6
    job = await desk.get(ids[0])
    assert job.cancel_requested_at is not None
    assert job.settled


async def test_a_running_job_is_asked_and_its_slot_told(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    for _ in range(2):
        assert (await _cancel(desk, accepted.id)).requested == {slot: (accepted.id,)}
    async with desk.pool.acquire() as connection:
        live = slots.SlotState.LIVE
        assert await slots.beat(connection, {slot: live}) == {slot: (accepted.id,)}
    assert (await desk.get(accepted.id)).cancel_requested_at is not None
    await desk.end(slot, jobs, Cancelled("cancelled by request"))
    assert await desk.states(accepted.id) == ["cancelled"]


@pytest.mark.parametrize("ending", [BROKEN, Released("shutdown"), Completed(1, (probe(),))])
async def test_asked_to_cancel_a_job_does_not_run_again_nor_create_others(
    desk: Desk, ending: Completed | Released
) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await _cancel(desk, accepted.id)
    assert not (await desk.end(slot, jobs, ending)).ready
    assert await desk.states(accepted.id) == ["cancelled"]


async def test_finished_work_is_kept_even_if_cancelling_was_asked(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await _cancel(desk, accepted.id)
    await desk.end(slot, jobs, DONE)
    assert await desk.states(accepted.id) == ["succeeded"]
    result = await _cancel(desk, accepted.id)
    assert (result.terminal, result.cancelled) == ((accepted.id,), ())


async def test_what_a_job_created_is_cancelled_with_it(desk: Desk) -> None:
    (root,) = await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), Completed(1, (probe(), probe())))
    one, other = await desk.claim(slot)
    await desk.end(slot, [one], Completed(1, (probe(delay_s=60),)))
    result = await _cancel(desk, root.id)
    assert result.terminal == (root.id,)
    assert len(result.cancelled) == 1
    assert result.requested == {slot: (other.id,)}
    assert not (await desk.get(root.id)).settled
    await desk.end(slot, [other], Cancelled("cancelled by request"))
    job = await desk.get(root.id)
    assert job.settled
    assert (job.follow_ups.total, job.follow_ups.cancelled, job.follow_ups.succeeded) == (3, 2, 1)
