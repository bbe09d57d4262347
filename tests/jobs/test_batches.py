"""Batches: counts, parts, results, the end."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
import pytest

from jobs import batches, ledger, retention
from jobs.batches import NewBatch
from jobs.errors import BatchNotFound, BatchNotOpen, IdempotencyMismatch, JobsRefused
from jobs.model import DEFAULT_TENANT, Batch, NewJob, TenantId
from jobs.outcomes import Completed, Ending, Released
from jobs.states import BatchState
from tests.jobs.desk import BROKEN, DONE, HOPELESS, Desk, probe, spooled

pytestmark = pytest.mark.anyio


async def _submit(desk: Desk, *jobs: NewJob, **fields: str) -> UUID:
    async with desk.pool.acquire() as connection, connection.transaction():
        batch_id = await batches.create(
            connection, DEFAULT_TENANT, NewBatch(callback_url=fields.get("callback_url"))
        )
        await ledger.enqueue(connection, DEFAULT_TENANT, jobs, kinds=desk.kinds, batch_id=batch_id)
    return batch_id


async def _get(desk: Desk, batch_id: UUID) -> Batch:
    async with desk.pool.acquire() as connection:
        return await batches.get(connection, DEFAULT_TENANT, batch_id)


def _adds_up(batch: Batch) -> bool:
    return all(
        counts.total == counts.live + counts.succeeded + counts.failed + counts.cancelled
        and min(counts.queued, counts.running, counts.scheduled) >= 0
        for counts in (batch.counts, batch.follow_ups)
    )


async def test_a_batch_counts_runs_and_finishes(desk: Desk) -> None:
    batch_id = await _submit(desk, probe(), probe(delay_s=60), probe(), callback_url="https://x/")
    slot = await desk.slot()
    one, other = await desk.claim(slot)
    counts = (await _get(desk, batch_id)).counts
    assert (counts.total, counts.scheduled, counts.queued, counts.running) == (3, 1, 0, 2)
    recorded = await desk.end(slot, [one], Completed(1, (probe(),)))
    assert recorded.batches == (batch_id,)
    await desk.end(slot, [other], HOPELESS)
    async with desk.pool.acquire() as connection:
        assert await batches.finish_due(connection) == []
        await batches.cancel(connection, DEFAULT_TENANT, batch_id)
        assert await batches.finish_due(connection, [batch_id]) == [batch_id]
        assert await batches.finish_due(connection) == []
        owed = await connection.fetch("SELECT data FROM outbox WHERE type = 'batch.finished'")
    batch = await _get(desk, batch_id)
    assert batch.state is BatchState.FINISHED
    assert (batch.counts.succeeded, batch.counts.failed, batch.counts.cancelled) == (1, 1, 1)
    assert (batch.follow_ups.total, batch.follow_ups.cancelled) == (1, 1)
    assert [row["data"]["run"] for row in owed] == [1]


async def test_counts_add_up_at_every_moment_under_concurrent_work(desk: Desk) -> None:
    batch_id = await _submit(
        desk,
        *(probe(max_attempts=2, concurrency_key="k" if n % 5 == 0 else None) for n in range(300)),
    )
    endings: list[Ending] = [
        DONE,
        BROKEN,
        HOPELESS,
        Released("x"),
        Completed(1, (probe(), probe(delay_s=9))),
    ]
    working = 2
    looks = 0

    async def work(seed: int) -> None:
        nonlocal working
        slot = await desk.slot()
        for turn in range(40):
            jobs = await desk.claim(slot, 7)
            ending = endings[(turn + seed) % len(endings)]
            await desk.end(slot, [job for job in jobs if job.parent_id is None], ending)
            await desk.end(slot, [job for job in jobs if job.parent_id is not None])
        working -= 1

    async def look() -> None:
        nonlocal looks
        while working:
            batch = await _get(desk, batch_id)
            assert _adds_up(batch), batch
            assert batch.counts.total == 300
            looks += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 0)
        tasks.start_soon(work, 2)
        tasks.start_soon(look)
    assert looks > 10
    assert (await _get(desk, batch_id)).counts.succeeded > 0


async def test_an_open_batch_takes_each_part_once_until_it_is_sealed(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        batch_id = await batches.create(connection, DEFAULT_TENANT, NewBatch(BatchState.OPEN))

        async def append(part: str, *jobs: NewJob, content: bytes = b"1") -> batches.Appended:
            with spooled(*jobs) as spool:
                return await batches.append(
                    connection,
                    DEFAULT_TENANT,
                    batch_id,
                    spool,
                    part_key=part,
                    request_hash=content,
                    kinds=desk.kinds,
                )

        first = await append("p1", probe(custom_id="a"), probe())
        again = await append("p1", probe(custom_id="a"), probe())
        assert (first.jobs, again.jobs, again.replayed) == (2, 2, True)
        with pytest.raises(IdempotencyMismatch):
            await append("p1", probe(), content=b"2")
        with pytest.raises(JobsRefused, match="earlier part"):
            await append("p2", probe(custom_id="a"))
        await append("p3", probe(depends_on=("a",)))
        assert await batches.finish_due(connection) == []
        assert (await batches.get(connection, DEFAULT_TENANT, batch_id)).counts.total == 3
        await batches.seal(connection, DEFAULT_TENANT, batch_id)
        await batches.seal(connection, DEFAULT_TENANT, batch_id)
        with pytest.raises(BatchNotOpen):
            await append("p4", probe())
        assert (await append("p3", probe())).replayed


async def test_an_open_batch_that_nobody_adds_to_is_sealed(desk: Desk) -> None:
    now = datetime.now(UTC)
    async with desk.pool.acquire() as connection:

        async def opened() -> UUID:
            new = NewBatch(BatchState.OPEN)
            return await batches.create(
                connection, DEFAULT_TENANT, new, now=now - timedelta(days=8)
            )

        forgotten, used = await opened(), await opened()
        with spooled(probe()) as spool:
            await batches.append(
                connection,
                DEFAULT_TENANT,
                used,
                spool,
                part_key="p",
                request_hash=b"",
                kinds=desk.kinds,
            )
        await retention.prune(connection, days=7)
        states = [
            await batches.state_of(connection, DEFAULT_TENANT, id_) for id_ in (forgotten, used)
        ]
        assert states == [BatchState.RUNNING, BatchState.OPEN]
        assert await batches.finish_due(connection) == [forgotten]


async def test_a_sealed_batch_of_nothing_finishes(desk: Desk) -> None:
    batch_id = await _submit(desk)
    async with desk.pool.acquire() as connection:
        assert await batches.finish_due(connection) == [batch_id]


async def test_results_come_once_each_in_the_order_of_commits(desk: Desk) -> None:
    batch_id = await _submit(desk, *(probe(custom_id=f"c{n}") for n in range(6)))
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await desk.end(slot, jobs[3:5])
    async with desk.pool.acquire() as connection:
        first = await batches.results(connection, DEFAULT_TENANT, batch_id)
        assert [line.job.custom_id for line in first] == ["c3", "c4"]
        cursor = first[-1].cursor
        # A transaction that began before and commits later must not be skipped.
        async with desk.pool.acquire() as late:
            transaction = late.transaction()
            await transaction.start()
            await late.execute("SELECT pg_current_xact_id()")
            await desk.end(slot, jobs[:1], Completed(1, (probe(),)))
            assert await batches.results(connection, DEFAULT_TENANT, batch_id, cursor=cursor) == []
            await transaction.commit()
        await desk.end(slot, [*jobs[1:3], jobs[5]], HOPELESS)
        rest = await batches.results(connection, DEFAULT_TENANT, batch_id, cursor=cursor)
        assert [line.job.custom_id for line in rest] == ["c0", "c1", "c2", "c5"]
        paged = await batches.results(connection, DEFAULT_TENANT, batch_id, limit=1)
        assert [line.job.custom_id for line in paged] == ["c3"]


async def test_another_tenants_batch_is_not_found(desk: Desk) -> None:
    batch_id = await _submit(desk, probe())
    other = TenantId(2)
    async with desk.pool.acquire() as connection:
        for read in (batches.get, batches.results, batches.cancel, batches.retry, batches.seal):
            with pytest.raises(BatchNotFound):
                await read(connection, other, batch_id)
        assert (await batches.list_batches(connection, other)).batches == ()


async def test_batches_are_listed_newest_first_page_by_page(desk: Desk) -> None:
    ids = [await _submit(desk, probe()) for _ in range(5)]
    found: list[UUID] = []
    cursor = None
    async with desk.pool.acquire() as connection:
        for _ in range(3):
            page = await batches.list_batches(connection, DEFAULT_TENANT, cursor=cursor, limit=2)
            found += [batch.id for batch in page.batches]
            cursor = page.next_cursor
    assert found == ids[::-1]
    assert cursor is None
