"""Terminal jobs that live again."""

import pytest

from jobs import batches, ledger, lookup
from jobs.model import DEFAULT_TENANT, Unique
from jobs.outcomes import Completed
from jobs.results import RetryResult
from tests.jobs.desk import DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio


async def _retry(desk: Desk, *ids: object) -> RetryResult:
    async with desk.pool.acquire() as connection:
        return await ledger.retry(connection, DEFAULT_TENANT, ids)  # type: ignore[arg-type]


async def test_a_dead_letter_lives_again_with_its_history(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe(max_attempts=1, tags=("t",), custom_id="c"))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    result = await _retry(desk, accepted.id)
    assert (result.retried, result.ready) == ((accepted.id,), {"probe": (accepted.id,)})
    again = await _retry(desk, accepted.id)
    assert (again.retried, again.live) == ((), (accepted.id,))
    (job,) = await desk.claim(slot)
    assert (job.attempt, job.failures) == (2, 0)
    await desk.end(slot, [job], DONE)
    async with desk.pool.acquire() as connection:
        found = await lookup.attempts(connection, DEFAULT_TENANT, accepted.id)
    assert [(a.attempt, a.outcome) for a in found] == [(1, "failed"), (2, "succeeded")]
    final = await desk.get(accepted.id)
    assert (final.tags, final.custom_id, final.error) == (("t",), "c", None)


async def test_an_unknown_id_is_missing(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    other = accepted.id.__class__(int=1)
    result = await _retry(desk, accepted.id, other)
    assert (result.live, result.missing) == ((accepted.id,), (other,))


async def test_a_taken_unique_key_is_not_taken_twice(desk: Desk) -> None:
    (first,) = await desk.enqueue(probe(unique=Unique("k")))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    (second,) = await desk.enqueue(probe(unique=Unique("k")))
    assert (await _retry(desk, first.id)).key_taken == (first.id,)
    await desk.end(slot, await desk.claim(slot), DONE)
    assert (await _retry(desk, first.id)).retried == (first.id,)
    (third,) = await desk.enqueue(probe(unique=Unique("k")))
    assert third.id == first.id != second.id


async def test_a_key_holds_the_retried_job_back_too(desk: Desk) -> None:
    (first,) = await desk.enqueue(probe(concurrency_key="k"))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    await desk.enqueue(probe(concurrency_key="k"))
    assert not (await _retry(desk, first.id)).ready
    assert await desk.states(first.id) == ["scheduled"]


async def test_its_family_is_open_again_and_its_batch_runs_again(desk: Desk) -> None:
    async with desk.pool.acquire() as connection, connection.transaction():
        batch_id = await batches.create(connection, DEFAULT_TENANT, batches.NewBatch())
        (root,) = await ledger.enqueue(
            connection, DEFAULT_TENANT, [probe()], kinds=desk.kinds, batch_id=batch_id
        )
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), Completed(1, (probe(),)))
    (child,) = await desk.claim(slot)
    await desk.end(slot, [child], HOPELESS)
    async with desk.pool.acquire() as connection:
        assert await batches.finish_due(connection, [batch_id]) == [batch_id]
        await batches.retry(connection, DEFAULT_TENANT, batch_id)
        batch = await batches.get(connection, DEFAULT_TENANT, batch_id)
        assert (batch.state, batch.run, batch.follow_ups.queued) == ("running", 2, 1)
        assert not await batches.finish_due(connection)
    assert not (await desk.get(root.id)).settled
    await desk.end(slot, await desk.claim(slot), DONE)
    assert (await desk.get(root.id)).settled
    async with desk.pool.acquire() as connection:
        assert await batches.finish_due(connection) == [batch_id]
        types = await connection.fetch("SELECT type FROM events WHERE type LIKE 'batch.%'")
    assert len(types) == 2


async def test_a_retried_job_waits_again_for_the_parents_that_live(desk: Desk) -> None:
    doomed, slow = await desk.enqueue(probe(priority=9), probe())
    parents = (str(doomed.id), str(slow.id))
    (child,) = await desk.enqueue(probe(depends_on=parents))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot, 1), HOPELESS)
    assert (await desk.get(child.id)).state == "cancelled"
    assert (await _retry(desk, child.id)).ready == {}
    again = await desk.get(child.id)
    assert (again.state, again.state_reason) == ("scheduled", "dependency")
    recorded = await desk.end(slot, await desk.claim(slot), DONE)
    assert recorded.ready == {"probe": (child.id,)}


async def test_a_retried_job_does_not_wait_for_a_parent_that_ended_meanwhile(desk: Desk) -> None:
    doomed, slow = await desk.enqueue(probe(priority=9), probe())
    parents = (str(doomed.id), str(slow.id))
    (child,) = await desk.enqueue(probe(depends_on=parents))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot, 1), HOPELESS)
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    assert (await _retry(desk, child.id)).ready == {"probe": (child.id,)}


async def test_a_key_held_until_the_start_is_held_again(desk: Desk) -> None:
    unique = Unique("k", until="started")
    (first,) = await desk.enqueue(probe(unique=unique))
    async with desk.pool.acquire() as connection:
        await ledger.cancel(connection, DEFAULT_TENANT, [first.id])
    assert (await _retry(desk, first.id)).retried == (first.id,)
    (second,) = await desk.enqueue(probe(unique=unique))
    assert (second.id, second.deduplicated) == (first.id, True)
    await desk.claim(await desk.slot())
    (third,) = await desk.enqueue(probe(unique=unique))
    assert not third.deduplicated
