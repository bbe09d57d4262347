"""How attempts end."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from jobs import ledger, lookup
from jobs.model import DEFAULT_TENANT, NewJob, Unique
from jobs.outcomes import Cancelled, Completed, Ending, Failed, Problem, Released
from jobs.results import Ended
from tests.jobs.desk import BROKEN, DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio


async def test_a_result_is_kept_and_the_start_is_told_by_the_databases_clock(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    (job,) = await desk.claim(slot)
    recorded = await desk.record(slot, Ended(job, Completed({"echo": [1, "ü"]}), 0.25))
    assert recorded.settled == (job.id,)
    found = await desk.get(job.id)
    assert (found.state, found.result, found.settled) == ("succeeded", {"echo": [1, "ü"]}, True)
    assert found.started_at == job.claimed_at + timedelta(seconds=0.25)
    assert found.error is None


async def test_failures_are_counted_until_the_budget_is_spent(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe(max_attempts=3))
    slot = await desk.slot()
    later = datetime.now(UTC) + timedelta(days=1)
    for _ in range(2):
        await desk.end(slot, await desk.claim(slot), BROKEN)
        job = await desk.get(accepted.id)
        assert (job.state, job.state_reason) == ("scheduled", "backoff")
        assert job.error is not None
        assert job.error["type"] == "broken"
        async with desk.pool.acquire() as connection:
            assert await ledger.promote_due(connection, 10, now=later)
    await desk.end(slot, await desk.claim(slot), BROKEN)
    assert await desk.states(accepted.id) == ["failed"]
    async with desk.pool.acquire() as connection:
        found = await lookup.attempts(connection, DEFAULT_TENANT, accepted.id)
    assert [(a.attempt, a.outcome) for a in found] == [
        (1, "retried"),
        (2, "retried"),
        (3, "failed"),
    ]


async def test_a_hopeless_failure_ends_at_once(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe(max_attempts=9))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), HOPELESS)
    job = await desk.get(accepted.id)
    assert (job.state, job.attempt) == ("failed", 1)


async def test_retry_after_is_obeyed(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    (job,) = await desk.claim(slot)
    busy = Failed(Problem("busy", "come back", after_s=120.0))
    before = datetime.now(UTC)
    await desk.end(slot, [job], busy)
    wait = (await desk.get(accepted.id)).run_at - before
    assert timedelta(seconds=119) < wait < timedelta(seconds=130)


async def test_given_back_is_no_failure_and_keeps_its_place(desk: Desk) -> None:
    first, second = await desk.enqueue(probe(max_attempts=1), probe())
    slot = await desk.slot()
    for attempt in range(1, 5):
        claimed = await desk.claim(slot, 1)
        assert [(job.id, job.attempt) for job in claimed] == [(first.id, attempt)]
        recorded = await desk.end(slot, claimed, Released("shutdown"))
        assert recorded.ready == {"probe": (first.id,)}
    assert await desk.states(first.id, second.id) == ["queued", "queued"]


async def test_a_handler_may_cancel_its_own_job(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), Cancelled("nothing to do"))
    job = await desk.get(accepted.id)
    assert job.state == "cancelled"
    assert job.error is not None
    assert job.error["detail"] == "nothing to do"


@pytest.mark.parametrize(
    ("result", "type_"),
    [
        ("with \x00 in it", "bad_result"),
        ({"deep": ["\x00"]}, "bad_result"),
        ({1, 2}, "bad_result"),
        (object(), "bad_result"),
        ("\ud800", "bad_result"),
        ("x" * (1024 * 1024), "result_too_large"),
    ],
)
async def test_one_bad_result_fails_alone(desk: Desk, result: object, type_: str) -> None:
    await desk.enqueue(*(probe() for _ in range(5)))
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    bad = Ended(jobs[2], Completed(result))  # type: ignore[arg-type] # handlers are not checked
    recorded = await desk.record(slot, bad, *(Ended(job, DONE) for job in jobs if job != jobs[2]))
    assert not recorded.stale
    states = await desk.states(*(job.id for job in jobs))
    assert states == ["succeeded", "succeeded", "failed", "succeeded", "succeeded"]
    error = (await desk.get(jobs[2].id)).error
    assert error is not None
    assert error["type"] == type_


async def test_bad_follow_ups_fail_their_parent_alone(desk: Desk) -> None:
    await desk.enqueue(probe(), probe())
    slot = await desk.slot()
    one, other = await desk.claim(slot)
    bad = Completed(None, (NewJob("nonsense", {}),))
    await desk.record(slot, Ended(one, bad), Ended(other, DONE))
    assert await desk.states(one.id, other.id) == ["failed", "succeeded"]


async def test_hostile_text_in_a_problem_is_stored_cleaned(desk: Desk) -> None:
    await desk.enqueue(probe(), probe())
    slot = await desk.slot()
    one, other = await desk.claim(slot)
    hostile = "nul \x00, half \ud800, long " + "x" * 100_000
    await desk.record(
        slot,
        Ended(one, Failed(Problem("odd", hostile))),
        Ended(other, Failed(Problem("odd", hostile, retryable=False))),
    )
    for job in (one, other):
        error = (await desk.get(job.id)).error
        assert error is not None
        assert error["type"] == "odd"
        assert len(str(error["detail"])) < 20_000


async def test_a_mixed_batch_ends_each_in_its_own_way(desk: Desk) -> None:
    await desk.enqueue(*(probe(unique=Unique(str(n)), concurrency_key=str(n)) for n in range(6)))
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    endings: list[Ending] = [
        DONE,
        BROKEN,
        HOPELESS,
        Released("x"),
        Cancelled("y"),
        Completed(1, (probe(),)),
    ]
    recorded = await desk.record(
        slot, *(Ended(job, ending) for job, ending in zip(jobs, endings, strict=True))
    )
    assert not recorded.stale
    assert await desk.states(*(job.id for job in jobs)) == [
        "succeeded", "scheduled", "failed", "queued", "cancelled", "succeeded",
    ]  # fmt: skip


async def test_recording_twice_is_stale_and_changes_nothing(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await desk.end(slot, jobs)
    for ending in (DONE, BROKEN, HOPELESS, Released("x"), Completed(1, (probe(),))):
        recorded = await desk.end(slot, jobs, ending)
        assert recorded.stale == {jobs[0].id}
        assert not recorded.ready
    assert await desk.claim(slot) == []


async def test_recording_in_a_callers_transaction_that_fails_writes_nothing(desk: Desk) -> None:
    await desk.enqueue(probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await ledger.record(
            connection, slot, [Ended(jobs[0], DONE)], kinds=desk.kinds, rng=random.Random(1)
        )
        await transaction.rollback()
    assert await desk.states(jobs[0].id) == ["running"]
