"""Accepting jobs: defaults, refusals, unique keys."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import anyio
import pytest

from jobs import ledger, lookup
from jobs.errors import JobsRefused
from jobs.model import DEFAULT_TENANT, Accepted, NewJob, Unique
from jobs.states import JobState, OnParentFailure, ScheduledReason
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio


async def test_a_plain_job_is_queued_with_its_kinds_defaults(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(NewJob("generate", {"prompt": "x"}, tags=("a", "b")))
    job = await desk.get(accepted.id)
    assert (job.state, job.pool, job.tags) == (JobState.QUEUED, "generate", ("a", "b"))
    assert job.max_attempts == desk.kinds["generate"].max_attempts
    assert job.payload == {"prompt": "x"}
    assert not job.settled


async def test_answers_come_in_the_order_given_and_ids_grow(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe(custom_id=f"c{n}") for n in range(50)))
    ids = [job.id for job in accepted]
    assert ids == sorted(ids)
    assert [(await desk.get(job_id)).custom_id for job_id in ids[:3]] == ["c0", "c1", "c2"]


async def test_a_delayed_job_is_scheduled_until_its_time(desk: Desk) -> None:
    now = datetime.now(UTC)
    delayed, timed, past = await desk.enqueue(
        probe(delay_s=60.0),
        probe(run_at=now + timedelta(hours=1)),
        probe(run_at=now - timedelta(hours=1)),
    )
    assert [delayed.state, timed.state, past.state] == ["scheduled", "scheduled", "queued"]
    assert (await desk.get(delayed.id)).state_reason is ScheduledReason.DELAYED
    async with desk.pool.acquire() as connection:
        assert await ledger.promote_due(connection, 10, now=now) == {}
        soon = now + timedelta(minutes=2)
        assert await ledger.promote_due(connection, 10, now=soon) == {"probe": (delayed.id,)}
    assert await desk.states(delayed.id, timed.id) == ["queued", "scheduled"]


async def test_one_bad_job_refuses_all_and_every_bad_one_is_named(desk: Desk) -> None:
    with pytest.raises(JobsRefused) as refused:
        await desk.enqueue(
            probe(),
            NewJob("nonsense", {}),
            probe(priority=10),
            probe(custom_id="x"),
            probe(custom_id="x"),
            probe(depends_on=("nobody",)),
        )
    found = {(refusal.position, refusal.pointer) for refusal in refused.value.refusals}
    assert found == {(1, "/kind"), (2, "/priority"), (4, "/custom_id")}
    assert await desk.claim(await desk.slot()) == []


async def test_unknown_parents_are_refused_by_their_place(desk: Desk) -> None:
    stranger = str(uuid4())
    with pytest.raises(JobsRefused) as refused:
        await desk.enqueue(
            probe(custom_id="a"), probe(depends_on=("a", "b")), probe(depends_on=(stranger,))
        )
    assert [(r.position, r.pointer) for r in refused.value.refusals] == [
        (1, "/depends_on/1"),
        (2, "/depends_on"),
    ]


async def test_jobs_that_wait_for_each_other_are_refused(desk: Desk) -> None:
    with pytest.raises(JobsRefused, match="wait for each other"):
        await desk.enqueue(
            probe(custom_id="a", depends_on=("b",)), probe(custom_id="b", depends_on=("a",))
        )


async def test_unique_until_finished_answers_with_the_holder_until_it_is_over(desk: Desk) -> None:
    job = probe(unique=Unique("k"))
    (first,) = await desk.enqueue(job)
    (second,) = await desk.enqueue(job)
    assert second == Accepted(first.id, "probe", "probe", JobState.QUEUED, deduplicated=True)
    slot = await desk.slot()
    claimed = await desk.claim(slot)
    (third,) = await desk.enqueue(job)
    assert (third.id, third.state) == (first.id, JobState.RUNNING)
    await desk.end(slot, claimed)
    (fourth,) = await desk.enqueue(job)
    assert fourth.id != first.id
    assert not fourth.deduplicated


async def test_unique_until_started_ends_with_the_claim(desk: Desk) -> None:
    job = probe(unique=Unique("k", "started"))
    (first,) = await desk.enqueue(job)
    assert (await desk.enqueue(job))[0].id == first.id
    await desk.claim(await desk.slot())
    (second,) = await desk.enqueue(job)
    assert second.id != first.id


async def test_unique_for_a_time_outlives_the_job(desk: Desk) -> None:
    job = probe(unique=Unique("k", "time", 60.0))
    (first,) = await desk.enqueue(job)
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    (second,) = await desk.enqueue(job)
    assert (second.id, second.state) == (first.id, JobState.SUCCEEDED)
    async with desk.pool.acquire() as connection:
        (third,) = await ledger.enqueue(
            connection,
            DEFAULT_TENANT,
            [job],
            kinds=desk.kinds,
            now=datetime.now(UTC) + timedelta(seconds=61),
        )
    assert third.id != first.id


async def test_unique_within_one_call_and_under_a_race_makes_one_job(desk: Desk) -> None:
    job = probe(unique=Unique("k"))
    ids = {accepted.id for accepted in await desk.enqueue(job, job)}

    async def again() -> None:
        ids.add((await desk.enqueue(job))[0].id)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(again)
    assert len(ids) == 1


async def test_who_depends_on_a_duplicate_depends_on_the_holder(desk: Desk) -> None:
    (holder,) = await desk.enqueue(probe(unique=Unique("k")))
    twin, child = await desk.enqueue(
        probe(unique=Unique("k"), custom_id="a"), probe(depends_on=("a",))
    )
    assert twin.id == holder.id
    assert child.state is JobState.SCHEDULED
    slot = await desk.slot()
    recorded = await desk.end(slot, await desk.claim(slot))
    assert recorded.ready == {"probe": (child.id,)}


async def test_another_tenant_sees_nothing(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    async with desk.pool.acquire() as connection:
        assert await lookup.get_many(connection, type(DEFAULT_TENANT)(2), [accepted.id]) == []
        other = await ledger.cancel(connection, type(DEFAULT_TENANT)(2), [accepted.id])
    assert other.missing == (accepted.id,)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (OnParentFailure.RUN, "queued"),
        (OnParentFailure.CANCEL, "cancelled"),
        (OnParentFailure.FAIL, "failed"),
    ],
)
async def test_a_parent_that_failed_before_decides_at_once(
    desk: Desk, policy: OnParentFailure, expected: str
) -> None:
    (parent,) = await desk.enqueue(probe())
    async with desk.pool.acquire() as connection:
        await ledger.cancel(connection, DEFAULT_TENANT, [parent.id])
    (child,) = await desk.enqueue(probe(depends_on=(str(parent.id),), on_parent_failure=policy))
    assert child.state == expected
    assert await desk.states(child.id) == [expected]
