"""Events: order, cursors, scopes."""

import pytest

from jobs import batches, events
from jobs.errors import CursorPast
from jobs.events import Event, EventScope, NewEvent
from jobs.model import DEFAULT_TENANT, TenantId
from tests.jobs.desk import DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio

ALL = EventScope(DEFAULT_TENANT)


async def _after(desk: Desk, cursor: str | None, limit: int = 500) -> list[Event]:
    async with desk.pool.acquire() as connection:
        return await events.after(connection, ALL, cursor, limit)


async def test_an_end_is_told_with_its_settling_in_order(desk: Desk) -> None:
    one, other = await desk.enqueue(probe(), probe())
    slot = await desk.slot()
    jobs = await desk.claim(slot)
    await desk.end(slot, jobs[:1], DONE)
    await desk.end(slot, jobs[1:], HOPELESS)
    assert [(event.type, event.job_id) for event in await _after(desk, None)] == [
        ("job.succeeded", one.id),
        ("job.settled", one.id),
        ("job.failed", other.id),
        ("job.settled", other.id),
    ]


async def test_any_cursor_resumes_without_a_gap_or_a_repeat(desk: Desk) -> None:
    await desk.enqueue(*(probe() for _ in range(10)))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    whole = await _after(desk, None)
    assert len(whole) == 20
    for limit in (1, 3, 7):
        read: list[Event] = []
        cursor = None
        while page := await _after(desk, cursor, limit):
            read += page
            cursor = page[-1].cursor
        assert read == whole


async def test_a_transaction_that_commits_late_is_not_skipped(desk: Desk) -> None:
    async with desk.pool.acquire() as late, desk.pool.acquire() as prompt:
        transaction = late.transaction()
        await transaction.start()
        await events.add(late, [NewEvent(DEFAULT_TENANT, "document.created", {"n": 1})])
        await events.add(prompt, [NewEvent(DEFAULT_TENANT, "document.created", {"n": 2})])
        assert await _after(desk, None) == []
        latest = await events.latest(prompt)
        await transaction.commit()
    assert [event.data["n"] for event in await _after(desk, None)] == [1, 2]
    assert [event.data["n"] for event in await _after(desk, latest)] == [1, 2]
    async with desk.pool.acquire() as connection:
        assert await _after(desk, await events.latest(connection)) == []


async def test_scopes_and_tenants_see_their_own(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    async with desk.pool.acquire() as connection:
        await events.add(connection, [NewEvent(TenantId(2), "document.created", {})])
        own = await events.after(connection, EventScope(DEFAULT_TENANT, job_id=accepted.id), None)
        other = await events.after(connection, EventScope(TenantId(2)), None)
        none = await events.after(connection, EventScope(TenantId(2), job_id=accepted.id), None)
    assert [event.type for event in own] == ["job.succeeded", "job.settled"]
    assert [event.type for event in other] == ["document.created"]
    assert none == []


async def test_a_cursor_from_before_what_is_kept_is_told_so(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        await events.add(connection, [NewEvent(DEFAULT_TENANT, "document.created", {})])
        (event,) = await _after(desk, None)
        await connection.execute("UPDATE events_dropped SET xid = pg_current_xact_id()")
        try:
            with pytest.raises(CursorPast):
                await _after(desk, event.cursor)
        finally:
            await connection.execute("UPDATE events_dropped SET xid = '0'")


@pytest.mark.parametrize(
    "cursor", ["", "x", "1-2", "1-2-3", "-1-2-0", "1" * 40 + "-1-0", "1-1-1-1"]
)
async def test_a_malformed_cursor_is_a_value_error(desk: Desk, cursor: str) -> None:
    with pytest.raises(ValueError, match="no cursor"):
        await _after(desk, cursor)


async def test_a_cursor_of_before_a_restore_is_past(desk: Desk) -> None:
    """The database has not come to that transaction: nothing would follow it for a long time."""
    await desk.enqueue(probe())
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    last = (await _after(desk, None))[-1].cursor
    assert await _after(desk, last) == []
    ahead = f"{int(last.split('-')[0], 16) + 1_000_000:x}-1-0"
    with pytest.raises(CursorPast, match="lost"):
        await _after(desk, ahead)


async def test_a_cursor_of_results_from_before_a_restore_is_past(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        batch_id = await batches.create(connection, DEFAULT_TENANT, batches.NewBatch())
    await desk.enqueue(probe(), batch_id=batch_id)
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot))
    async with desk.pool.acquire() as connection:
        (line,) = await batches.results(connection, DEFAULT_TENANT, batch_id)
        follow = await batches.results(connection, DEFAULT_TENANT, batch_id, cursor=line.cursor)
        assert follow == []
        xid, _, job_id = line.cursor.partition("-")
        ahead = f"{int(xid, 16) + 1_000_000:x}-{job_id}"
        with pytest.raises(CursorPast):
            await batches.results(connection, DEFAULT_TENANT, batch_id, cursor=ahead)
