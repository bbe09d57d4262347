"""Bulk operations: what they touch, what they leave, and that no crash repeats or skips a job."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from jobs import batches, ledger, matching, operation_slices, operations, retention
from jobs.batches import NewBatch
from jobs.errors import OperationNotFound
from jobs.matching import OperationAction, OperationFilter, Wanted
from jobs.model import DEFAULT_TENANT, NewJob, TenantId, Unique
from jobs.operation_slices import Worked
from jobs.operations import Operation, OperationState
from jobs.outcomes import Failed, Problem
from jobs.states import JobState
from runtime.postgres import Connection
from tests.jobs.desk import DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio

RETRY, CANCEL, DISCARD = OperationAction.RETRY, OperationAction.CANCEL, OperationAction.DISCARD
OTHER_TENANT = TenantId(7)


@pytest.fixture
async def connection_of(desk: Desk) -> AsyncIterator[Connection]:
    """A connection of the desk's pool."""
    async with desk.pool.acquire() as connection:
        yield connection


async def dead_letters(desk: Desk, *jobs: NewJob, ending: Failed = HOPELESS) -> list[UUID]:
    """Jobs that have failed for good."""
    accepted = await desk.enqueue(*jobs)
    slot = await desk.slot()
    while claimed := await desk.claim(slot, 1000):
        await desk.end(slot, claimed, ending)
    return [job.id for job in accepted]


async def accept(desk: Desk, action: OperationAction, **conditions: Any) -> Operation:
    async with desk.pool.acquire() as connection, connection.transaction():
        wanted = Wanted(DEFAULT_TENANT, action, OperationFilter(**conditions))
        return await operations.accept(connection, wanted, actor="ann")


async def work_off(desk: Desk) -> list[Worked]:
    """Slice after slice until nothing is due."""
    slices = []
    async with desk.pool.acquire() as connection:
        while (worked := await operation_slices.work(connection)) is not None:
            slices.append(worked)
    return slices


async def look(desk: Desk, operation: Operation) -> Operation:
    async with desk.pool.acquire() as connection:
        return await operations.get(connection, DEFAULT_TENANT, operation.id)


async def test_dead_letters_are_retried_and_it_is_told_how_many(desk: Desk) -> None:
    ids = await dead_letters(desk, *(probe() for _ in range(5)))
    (other,) = await dead_letters(desk, NewJob("probe", {}, tags=("keep",)))
    slot = await desk.slot()
    (fine,) = await desk.enqueue(probe())
    await desk.end(slot, await desk.claim(slot), DONE)
    operation = await accept(desk, RETRY, ids=(*ids, uuid4()))
    assert (operation.state, operation.expected) == (OperationState.QUEUED, 5)
    (worked,) = await work_off(desk)
    assert set(worked.ready["probe"]) == set(worked.jobs) == set(ids)
    after = await look(desk, operation)
    assert (after.state, after.done, after.skipped, after.failed) == ("succeeded", 5, 0, 0)
    assert (after.actor, after.error) == ("ann", None)
    assert after.started_at is not None
    assert after.finished_at is not None
    assert await desk.states(*ids) == ["queued"] * 5
    assert await desk.states(other, fine.id) == ["failed", "succeeded"]


@pytest.mark.parametrize(
    ("conditions", "hit"),
    [
        ({"kind": "probe"}, {"a", "b", "c"}),
        ({"kind": "embed"}, set()),
        ({"pool": "probe"}, {"a", "b", "c"}),
        ({"tags": ("red",)}, {"a", "b"}),
        ({"tags": ("red", "big")}, {"b"}),
        ({"error_type": "hopeless"}, {"a", "b"}),
        ({"error_type": "other"}, {"c"}),
        ({"schedule_id": UUID(int=9)}, {"c"}),
        ({"created_before": datetime(2020, 1, 1, tzinfo=UTC)}, set()),
        ({"created_after": datetime(2020, 1, 1, tzinfo=UTC), "tags": ("big",)}, {"b"}),
        ({"finished_after": datetime(2020, 1, 1, tzinfo=UTC)}, {"a", "b", "c"}),
        ({"finished_before": datetime(2020, 1, 1, tzinfo=UTC)}, set()),
        ({"state": JobState.SUCCEEDED}, {"d"}),
        ({}, {"a", "b", "c"}),
    ],
)
async def test_every_condition_narrows_what_is_touched(
    desk: Desk, connection_of: Connection, conditions: dict[str, Any], hit: set[str]
) -> None:
    names = {}
    for name, job, ending in (
        ("a", probe(tags=("red",)), HOPELESS),
        ("b", probe(tags=("red", "big")), HOPELESS),
        ("c", probe(schedule_id=UUID(int=9)), Failed(Problem("other", "x", retryable=False))),
        ("d", probe(), DONE),
    ):
        (accepted,) = await desk.enqueue(job)
        slot = await desk.slot()
        await desk.end(slot, await desk.claim(slot), ending)
        names[accepted.id] = name
    wanted = Wanted(DEFAULT_TENANT, RETRY, OperationFilter(**conditions))
    found = await matching.preview(connection_of, wanted)
    assert {names[job_id] for job_id in found.sample} == hit
    assert (found.matched, found.at_least) == (len(hit), False)
    stored = OperationFilter.from_json(wanted.filter.as_json())
    assert stored == wanted.filter
    await accept(desk, RETRY, **conditions)
    touched = {names[job_id] for worked in await work_off(desk) for job_id in worked.jobs}
    assert touched == hit


@pytest.mark.parametrize(
    ("state", "hit"),
    [
        (None, {"queued", "scheduled", "running"}),
        (JobState.QUEUED, {"queued"}),
        (JobState.SCHEDULED, {"scheduled"}),
        (JobState.RUNNING, {"running"}),
    ],
)
async def test_live_jobs_are_cancelled_by_their_state(
    desk: Desk, state: JobState | None, hit: set[str]
) -> None:
    (running,) = await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.claim(slot)
    queued, scheduled = await desk.enqueue(probe(), probe(delay_s=60))
    names = {running.id: "running", queued.id: "queued", scheduled.id: "scheduled"}
    operation = await accept(desk, CANCEL, state=state)
    touched = {names[job_id] for worked in await work_off(desk) for job_id in worked.jobs}
    assert touched == hit
    assert (await look(desk, operation)).done == len(hit)
    is_asked = (await desk.get(running.id)).cancel_requested_at is not None
    assert is_asked == ("running" in hit)


async def test_a_batch_is_found_by_its_own_index_and_finished_after_its_cancellation(
    desk: Desk, connection_of: Connection
) -> None:
    batch_id = await batches.create(connection_of, DEFAULT_TENANT, NewBatch())
    own = await desk.enqueue(*(probe() for _ in range(3)), batch_id=batch_id)
    (other,) = await desk.enqueue(probe())
    await accept(desk, CANCEL, batch_id=batch_id)
    (worked,) = await work_off(desk)
    assert worked.batches == (batch_id,)
    assert await desk.states(*(job.id for job in own), other.id) == ["cancelled"] * 3 + ["queued"]
    batch = await batches.get(connection_of, DEFAULT_TENANT, batch_id)
    assert (batch.state, batch.counts.cancelled) == ("finished", 3)
    await accept(desk, RETRY, batch_id=batch_id, state=JobState.CANCELLED)
    (worked,) = await work_off(desk)
    assert len(worked.jobs) == 3
    assert (await batches.get(connection_of, DEFAULT_TENANT, batch_id)).run == 2


async def test_what_comes_to_match_later_is_not_touched(desk: Desk) -> None:
    early = await dead_letters(desk, *(probe() for _ in range(3)))
    (waiting,) = await desk.enqueue(probe(delay_s=3600))
    retry = await accept(desk, RETRY, kind="probe")
    cancel = await accept(desk, CANCEL, kind="probe")
    late = await dead_letters(desk, probe())
    (new,) = await desk.enqueue(probe())
    # One that ended before, was brought back by somebody else, and has ended again.
    async with desk.pool.acquire() as connection:
        await ledger.retry(connection, DEFAULT_TENANT, early[:1])
    await dead_letters(desk)
    slices = await work_off(desk)
    assert {job_id for worked in slices for job_id in worked.jobs} == {waiting.id, *early[1:]}
    assert await desk.states(*late, new.id, early[0]) == ["failed", "failed", "failed"]
    assert ((await look(desk, retry)).done, (await look(desk, cancel)).done) == (2, 1)


async def test_what_an_operation_retried_is_not_cancelled_by_an_older_one(desk: Desk) -> None:
    (dead,) = await dead_letters(desk, probe())
    async with desk.pool.acquire() as connection, connection.transaction():
        wanted = Wanted(DEFAULT_TENANT, CANCEL, OperationFilter(kind="probe"))
        await operations.accept(connection, wanted, actor="ann")
    async with desk.pool.acquire() as connection:
        await ledger.retry(connection, DEFAULT_TENANT, [dead])
    await work_off(desk)
    assert await desk.states(dead) == ["queued"]


async def test_a_job_that_fails_again_meanwhile_is_retried_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await dead_letters(desk, *(probe() for _ in range(4)))
    monkeypatch.setattr(matching.find, "__kwdefaults__", {"jobs_max": 2})
    operation = await accept(desk, RETRY, kind="probe")
    async with desk.pool.acquire() as connection:
        while await operation_slices.work(connection) is not None:
            await dead_letters(desk)
    assert (await look(desk, operation)).done == 4
    assert {(await desk.get(job_id)).attempt for job_id in ids} == {2}


async def test_other_tenants_are_left_alone(desk: Desk, connection_of: Connection) -> None:
    await connection_of.execute("INSERT INTO tenants (id, name) VALUES ($1, 'other')", OTHER_TENANT)
    theirs = await ledger.enqueue(
        connection_of, OTHER_TENANT, [probe() for _ in range(3)], kinds=desk.kinds
    )
    await dead_letters(desk)
    await ledger.enqueue(connection_of, OTHER_TENANT, [probe()], kinds=desk.kinds)
    ours = await desk.enqueue(probe())
    for action in OperationAction:
        await accept(desk, action, ids=tuple(job.id for job in (*theirs, *ours)))
        await accept(desk, action)
    touched = {job_id for worked in await work_off(desk) for job_id in worked.jobs}
    assert touched == {ours[0].id}
    row = await connection_of.fetchrow(
        "SELECT count(*) FILTER (WHERE state = 'failed' AND discarded_at IS NULL) AS failed,"
        " count(*) AS ended FROM history WHERE tenant_id = $1",
        OTHER_TENANT,
    )
    assert tuple(row or ()) == (3, 3)
    operation = await accept(desk, RETRY, kind="probe")
    with pytest.raises(OperationNotFound):
        await operations.get(connection_of, OTHER_TENANT, operation.id)
    with pytest.raises(OperationNotFound):
        await operations.stop(connection_of, OTHER_TENANT, operation.id)
    assert (await operations.list_operations(connection_of, OTHER_TENANT)).operations == ()
    assert (await look(desk, operation)).state is OperationState.QUEUED


async def test_discarding_takes_dead_letters_off_the_list_and_a_retry_brings_one_back(
    desk: Desk, connection_of: Connection
) -> None:
    ids = await dead_letters(desk, *(probe() for _ in range(3)))
    await accept(desk, DISCARD, kind="probe")
    await work_off(desk)
    job = await desk.get(ids[0])
    assert (job.state, job.discarded_at is not None) == ("failed", True)
    assert await connection_of.fetchval("SELECT min(discarded_by) FROM history") == "ann"
    for action in (RETRY, DISCARD):
        again = await accept(desk, action, kind="probe", state=JobState.FAILED)
        assert again.expected == 0
    assert [worked.jobs for worked in await work_off(desk)] == [(), ()]
    result = await ledger.retry(connection_of, DEFAULT_TENANT, ids[:1])
    assert result.retried == (ids[0],)
    assert (await desk.get(ids[0])).discarded_at is None


async def test_a_discarded_job_of_a_batch_stays_out_of_the_batchs_retry(
    desk: Desk, connection_of: Connection
) -> None:
    batch_id = await batches.create(connection_of, DEFAULT_TENANT, NewBatch())
    kept, gone = (j.id for j in await desk.enqueue(probe(), probe(), batch_id=batch_id))
    await dead_letters(desk)
    result = await ledger.discard(connection_of, DEFAULT_TENANT, [gone], by="ann")
    assert result.discarded == (gone,)
    retried = await batches.retry(connection_of, DEFAULT_TENANT, batch_id)
    assert retried.retried == (kept,)


async def test_only_dead_letters_are_discarded(desk: Desk, connection_of: Connection) -> None:
    (dead,) = await dead_letters(desk, probe())
    (live,) = await desk.enqueue(probe())
    unknown = uuid4()
    for discarded, before in (((dead,), ()), ((), (dead,))):
        result = await ledger.discard(
            connection_of, DEFAULT_TENANT, [dead, live.id, unknown], by="ann"
        )
        assert (result.discarded, result.before) == (discarded, before)
        assert (dict(result.not_failed), result.missing) == ({live.id: "queued"}, (unknown,))


async def test_a_key_that_another_job_holds_is_skipped(desk: Desk) -> None:
    (dead,) = await dead_letters(desk, probe(unique=Unique("k")))
    await desk.enqueue(probe(unique=Unique("k")))
    operation = await accept(desk, RETRY, ids=(dead,))
    await work_off(desk)
    after = await look(desk, operation)
    assert (after.state, after.matched, after.done, after.skipped) == ("succeeded", 1, 0, 1)


async def test_one_bad_job_fails_alone_and_is_named(desk: Desk, connection_of: Connection) -> None:
    ids = await dead_letters(desk, *(probe() for _ in range(4)))
    await connection_of.execute("UPDATE history SET priority = 99 WHERE id = $1", ids[1])
    operation = await accept(desk, RETRY, kind="probe")
    (worked,) = await work_off(desk)
    assert set(worked.jobs) == set(worked.ready["probe"]) == set(ids) - {ids[1]}
    after = await look(desk, operation)
    assert (after.state, after.done, after.failed) == ("failed", 3, 1)
    assert after.error is not None
    assert str(ids[1]) in str(after.error["detail"])
    assert await desk.states(*ids) == ["queued", "failed", "queued", "queued"]


async def test_a_slice_that_postgres_refuses_is_put_off_and_others_go_first(desk: Desk) -> None:
    (dead,) = await dead_letters(desk, probe())
    (live,) = await desk.enqueue(probe())
    blocked = await accept(desk, RETRY, ids=(dead,))
    await accept(desk, CANCEL, ids=(live.id,))
    async with desk.pool.acquire() as other, desk.pool.acquire() as connection:
        held = other.transaction()
        await held.start()
        await other.execute("SELECT FROM history WHERE id = $1 FOR UPDATE", dead)
        await connection.execute("SET lock_timeout = '50ms'")
        first = await operation_slices.work(connection)
        second = await operation_slices.work(connection)
        third = await operation_slices.work(connection)
        await held.rollback()
        assert first == Worked(DEFAULT_TENANT)
        assert second is not None
        assert (second.jobs, third) == ((live.id,), None)
        put_off = await look(desk, blocked)
        assert (put_off.state, put_off.matched) == ("queued", 0)
        assert put_off.error is not None
        later = datetime.now(UTC) + timedelta(seconds=operation_slices.PUT_OFF_S + 1)
        worked = await operation_slices.work(connection, now=later)
        await connection.execute("RESET lock_timeout")
    assert worked is not None
    assert worked.jobs == (dead,)
    assert (await look(desk, blocked)).error is None


async def test_stopped_it_does_no_more_and_what_was_done_stays(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await dead_letters(desk, *(probe() for _ in range(5)))
    monkeypatch.setattr(matching.find, "__kwdefaults__", {"jobs_max": 2})
    operation = await accept(desk, RETRY, kind="probe")
    async with desk.pool.acquire() as connection:
        await operation_slices.work(connection)
        running = await operations.get(connection, DEFAULT_TENANT, operation.id)
        assert (running.state, running.done, running.finished_at) == ("running", 2, None)
        for _ in range(2):
            stopped = await operations.stop(connection, DEFAULT_TENANT, operation.id)
            assert (stopped.state, stopped.done) == ("cancelled", 2)
        assert await operation_slices.work(connection) is None
    assert await desk.states(*ids) == ["queued"] * 2 + ["failed"] * 3


async def _tables(connection: Connection) -> dict[str, str]:
    """A hash of every row of every table, with who wrote or locked it."""
    content = "string_agg(t.xmin || t.xmax::text || t::text, '' ORDER BY t.ctid)"
    names = await connection.fetch(
        "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace"
        " AND c.relkind = 'r' ORDER BY 1"
    )
    return {
        name: await connection.fetchval(
            f"SELECT md5(coalesce({content}, '')) FROM {name} AS t"  # noqa: S608 - from pg_class
        )
        for (name,) in names
    }


async def test_a_preview_changes_nothing_and_counts_up_to_its_bound(
    desk: Desk, connection_of: Connection
) -> None:
    ids = await dead_letters(desk, *(probe() for _ in range(30)))
    await desk.enqueue(probe(), probe(delay_s=60))
    before = await _tables(connection_of)
    for action, expected in ((CANCEL, 2), (DISCARD, 30), (RETRY, 30)):
        wanted = Wanted(DEFAULT_TENANT, action, OperationFilter(kind="probe"))
        found = await matching.preview(connection_of, wanted)
        assert (found.matched, found.at_least) == (expected, False)
    wanted = Wanted(DEFAULT_TENANT, RETRY, OperationFilter(kind="probe"))
    found = await matching.preview(connection_of, wanted)
    assert found.sample == tuple(sorted(ids)[: matching.SAMPLE_JOBS])
    assert await _tables(connection_of) == before
    exact = await matching.preview(connection_of, wanted, count_max=30)
    assert (exact.matched, exact.at_least) == (30, False)


async def test_a_count_beyond_its_bound_says_at_least(
    desk: Desk, connection_of: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dead_letters(desk, *(probe() for _ in range(12)))
    monkeypatch.setattr(matching.find, "__kwdefaults__", {"jobs_max": 4})
    wanted = Wanted(DEFAULT_TENANT, RETRY, OperationFilter(kind="probe"))
    bounded = await matching.preview(connection_of, wanted, count_max=7)
    assert (bounded.matched, bounded.at_least) == (7, True)
    hurried = await matching.preview(connection_of, wanted, seconds_max=0.0)
    assert (hurried.matched, hurried.at_least) == (4, True)


async def test_old_operations_are_forgotten(desk: Desk, connection_of: Connection) -> None:
    done, queued = await accept(desk, RETRY), await accept(desk, RETRY)
    await operations.stop(connection_of, DEFAULT_TENANT, done.id)
    later = datetime.now(UTC) + timedelta(days=30)
    assert (await retention.prune(connection_of, days=7, now=later)).rows == 1
    page = await operations.list_operations(connection_of, DEFAULT_TENANT)
    assert [operation.id for operation in page.operations] == [queued.id]


async def test_pages_of_operations_neither_repeat_nor_skip(
    desk: Desk, connection_of: Connection
) -> None:
    made = [(await accept(desk, RETRY)).id for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = await operations.list_operations(
            connection_of, DEFAULT_TENANT, cursor=cursor, limit=2
        )
        seen += [operation.id for operation in page.operations]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == made[::-1]
    with pytest.raises(ValueError, match="cursor"):
        await operations.list_operations(connection_of, DEFAULT_TENANT, cursor="nonsense")


async def test_five_thousand_jobs_two_tickers_and_a_crash_in_every_other_slice(desk: Desk) -> None:
    """A ticker whose connection dies within a slice repeats it; nothing is done twice."""
    ids: list[UUID] = []
    for _ in range(5):
        ids += await dead_letters(desk, *(probe() for _ in range(1000)))
    operation = await accept(desk, RETRY, kind="probe")
    slices: list[Worked] = []

    async def tick() -> None:
        is_first = True
        while True:
            async with desk.pool.acquire() as connection:
                if is_first:
                    await _die_in_a_slice(connection)
                    is_first = False
                    continue
                worked = await operation_slices.work(connection)
            if worked is not None:
                slices.append(worked)
            elif (await look(desk, operation)).finished_at is not None:
                return
            else:
                await anyio.lowlevel.checkpoint()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            group.start_soon(tick)
    after = await look(desk, operation)
    assert (after.state, after.done, after.skipped, after.failed) == ("succeeded", 5000, 0, 0)
    touched = [job_id for worked in slices for job_id in worked.jobs]
    assert sorted(touched) == sorted(ids)
    assert max(len(worked.jobs) for worked in slices) <= matching.SLICE_JOBS


async def _die_in_a_slice(connection: Connection) -> None:
    """A slice that is done whole, and whose connection is lost before it is committed."""
    try:
        async with connection.transaction():
            await operation_slices.work(connection)
            pid = connection.get_server_pid()
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return
    message = "the connection outlived its end"
    raise AssertionError(message)
