"""Slots: beats, death, rescue."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from jobs import ledger, slots
from jobs.errors import StateConflict
from jobs.model import DEFAULT_TENANT, SlotId
from jobs.outcomes import Failed, Problem
from jobs.results import Rescued
from jobs.rulings import INTERRUPTIONS_FREE
from jobs.slots import SlotState
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
        states = {one: SlotState.LIVE, other: SlotState.STOPPED}
        assert await slots.beat(connection, states) == {one: (), other: ()}
        await slots.end(connection, other, "test")
        assert await slots.beat(connection, states) == {one: ()}
        assert {slot: beat.count for slot, beat in (await slots.beats(connection)).items()} == {
            one: 2
        }
        (live,) = await slots.live(connection)
    assert live.state is SlotState.LIVE
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
        await _lose(desk, slot, started=[suspect.id])
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


async def test_a_lost_supervisor_or_host_costs_a_job_nothing_until_it_happens_often(
    desk: Desk,
) -> None:
    (job,) = await desk.enqueue(probe())
    losses = []
    for _ in range(INTERRUPTIONS_FREE + 2):
        slot = await desk.slot()
        (claimed,) = await desk.claim(slot, alone_ok=True)
        losses.append(claimed.losses)
        await _lose(desk, slot, started=None)
    assert losses == [0] * (INTERRUPTIONS_FREE + 1) + [1]
    slot = await desk.slot()
    (claimed,) = await desk.claim(slot, alone_ok=True)
    assert (claimed.losses, claimed.alone) == (2, True)
    rescued = await _lose(desk, slot, started=None)
    assert rescued.failed == (job.id,)


async def test_a_slot_ended_from_outside_costs_no_job_anything(desk: Desk) -> None:
    (job,) = await desk.enqueue(probe())
    for _ in range(INTERRUPTIONS_FREE + 3):
        slot = await desk.slot()
        await desk.claim(slot)
        await _lose(desk, slot, started=[])
    (claimed,) = await desk.claim(await desk.slot())
    assert (claimed.id, claimed.losses, claimed.failures) == (job.id, 0, 0)


POISON = """
CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this row cannot be taken back';
END $$;
CREATE TRIGGER poison BEFORE DELETE ON held FOR EACH ROW WHEN (OLD.attempt = 77)
EXECUTE FUNCTION poison()
"""


@pytest.fixture
async def poison(desk: Desk) -> AsyncIterator[None]:
    """Whoever gives a job back whose attempt is number 77, fails."""
    async with desk.pool.acquire() as connection:
        await connection.execute(POISON)
        yield
        await connection.execute("DROP TRIGGER poison ON held; DROP FUNCTION poison")


@pytest.mark.usefixtures("poison")
async def test_a_row_that_cannot_be_taken_back_keeps_none_of_the_others(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe() for _ in range(250)))
    slot = await desk.slot()
    assert len(await desk.claim(slot, 500)) == 250
    bad = accepted[100].id
    async with desk.pool.acquire() as connection:
        await connection.execute("UPDATE held SET attempt = 77 WHERE job_id = $1", bad)
    rescued = await _lose(desk, slot, started=[])
    assert set(rescued.requeued) == {job.id for job in accepted} - {bad}
    async with desk.pool.acquire() as connection:
        assert await slots.ended_holding(connection) == [slot]
        await connection.execute("UPDATE held SET attempt = 1 WHERE job_id = $1", bad)
    assert (await _lose(desk, slot, started=[])).requeued == (bad,)


async def test_a_slot_that_holds_its_row_is_ended_with_its_connections(
    desk: Desk, database_url: str
) -> None:
    slot = await desk.slot()
    stuck = await asyncpg.connect(
        database_url,
        server_settings={"application_name": f"xnai {slots.connection_role(slot)}probe 0"},
    )
    await stuck.execute("BEGIN")
    await stuck.execute("SELECT 1 FROM slots WHERE id = $1 FOR KEY SHARE", slot)
    async with desk.pool.acquire() as connection:
        assert await slots.end(connection, slot, "stopped")
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        await stuck.execute("COMMIT")
    await stuck.close()
