"""Slots: beats, death, rescue."""

import pytest

from jobs import ledger, slots
from jobs.errors import StateConflict
from jobs.model import DEFAULT_TENANT, SlotId
from jobs.outcomes import Failed, Problem
from jobs.results import Rescued
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio


async def _lose(desk: Desk, slot: SlotId, **kwargs: object) -> Rescued:
    async with desk.pool.acquire() as connection:
        await slots.end(connection, slot, "killed")
    kwargs.setdefault("started", None)
    return await slots.rescue(desk.pool, slot, kinds=desk.kinds, **kwargs)  # type: ignore[arg-type]


async def test_beats_grow_and_the_dead_do_not_beat(desk: Desk) -> None:
    one, other = await desk.slot(), await desk.slot()
    async with desk.pool.acquire() as connection:
        assert await slots.beat(connection, [one, other]) == {one, other}
        await slots.end(connection, other, "test")
        assert await slots.beat(connection, [one, other]) == {one}
        assert await slots.beats(connection) == {one: 2}
        (live,) = await slots.live(connection)
    assert (live.id, live.pool, live.kinds, live.running) == (one, "probe", ("probe",), 0)


async def test_a_living_slot_is_not_rescued(desk: Desk) -> None:
    slot = await desk.slot()
    with pytest.raises(StateConflict):
        await slots.rescue(desk.pool, slot, started=None, kinds=desk.kinds)


async def test_only_started_jobs_are_suspects(desk: Desk) -> None:
    started, waiting = await desk.enqueue(probe(), probe())
    slot = await desk.slot()
    await desk.claim(slot)
    rescued = await _lose(desk, slot, started=[started.id])
    assert set(rescued.requeued) == {started.id, waiting.id}
    assert set(rescued.ready["probe"]) == {started.id, waiting.id}
    jobs = {job.id: job for job in await desk.claim(await desk.slot())}
    assert (jobs[started.id].losses, jobs[waiting.id].losses) == (1, 0)
    assert jobs[started.id].failures == 0


async def test_a_suspect_runs_alone_from_the_second_loss_and_fails_with_the_third(
    desk: Desk,
) -> None:
    (suspect,) = await desk.enqueue(probe())
    for _ in range(2):
        slot = await desk.slot()
        assert len(await desk.claim(slot)) == 1
        await _lose(desk, slot)
    (other,) = await desk.enqueue(probe())
    slot = await desk.slot()
    assert [job.id for job in await desk.claim(slot, alone_ok=False)] == [other.id]
    await desk.enqueue(probe())
    (job,) = await desk.claim(slot, alone_ok=True)
    assert (job.id, job.alone, job.losses) == (suspect.id, True, 2)
    rescued = await _lose(desk, slot, started=[suspect.id])
    assert rescued.failed == (suspect.id,)
    error = (await desk.get(suspect.id)).error
    assert error is not None
    assert error["type"] == "worker_lost"


async def test_rescue_finishes_what_was_to_be_cancelled_and_what_the_kill_decided(
    desk: Desk,
) -> None:
    cancelled, overdue = await desk.enqueue(probe(), probe(max_attempts=1))
    slot = await desk.slot()
    jobs = {job.id: job for job in await desk.claim(slot)}
    async with desk.pool.acquire() as connection:
        await ledger.cancel(connection, DEFAULT_TENANT, [cancelled.id])
    decided = {overdue.id: (jobs[overdue.id].token, Failed(Problem("timeout", "too slow")))}
    rescued = await _lose(desk, slot, endings=decided)
    assert (rescued.cancelled, rescued.failed) == ((cancelled.id,), (overdue.id,))
    assert rescued.total == 2
    assert await desk.states(cancelled.id, overdue.id) == ["cancelled", "failed"]
    again = await slots.rescue(desk.pool, slot, started=None, kinds=desk.kinds)
    assert again.total == 0
