"""Reading jobs while they move."""

from uuid import UUID, uuid4

import anyio
import pytest

from jobs import lookup
from jobs.errors import JobNotFound
from jobs.lookup import JobFilter, version
from jobs.model import DEFAULT_TENANT, Job
from jobs.outcomes import Completed, Released
from jobs.states import JobState
from tests.jobs.desk import BROKEN, DONE, HOPELESS, Desk, probe

pytestmark = pytest.mark.anyio


async def _list(desk: Desk, **fields: object) -> list[Job]:
    found: list[Job] = []
    cursor: str | None = None
    async with desk.pool.acquire() as connection:
        while True:
            page = await lookup.list_jobs(
                connection,
                DEFAULT_TENANT,
                JobFilter(**fields),  # type: ignore[arg-type]
                cursor=cursor,
                limit=2,
            )
            found += page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return found


async def test_a_job_that_does_not_exist_is_not_found(desk: Desk) -> None:
    with pytest.raises(JobNotFound):
        await desk.get(uuid4())
    async with desk.pool.acquire() as connection:
        with pytest.raises(JobNotFound):
            await lookup.attempts(connection, DEFAULT_TENANT, uuid4())


async def test_every_state_lists_its_own_newest_first(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe(tags=(f"t{n % 2}",)) for n in range(6)))
    (later,) = await desk.enqueue(probe(delay_s=60))
    slot = await desk.slot()
    jobs = await desk.claim(slot, 5)
    await desk.end(slot, jobs[:1], DONE)
    await desk.end(slot, jobs[1:3], HOPELESS)
    ids = [job.id for job in accepted]
    expected = {
        JobState.SUCCEEDED: ids[:1],
        JobState.FAILED: ids[1:3],
        JobState.RUNNING: ids[3:5],
        JobState.QUEUED: ids[5:],
        JobState.SCHEDULED: [later.id],
        JobState.CANCELLED: [],
    }
    for state, own in expected.items():
        assert [job.id for job in await _list(desk, state=state)] == own[::-1]
    assert [job.id for job in await _list(desk)] == [*ids, later.id][::-1]
    assert [job.id for job in await _list(desk, tag="t1")] == ids[1::2][::-1]
    assert await _list(desk, kind="embed") == []
    assert await _list(desk, batch_id=uuid4()) == []


async def test_a_job_that_moves_is_never_missed_nor_seen_twice(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe() for _ in range(20)))
    ids = [job.id for job in accepted]
    moving = True
    looks = 0

    async def move() -> None:
        nonlocal moving
        slot = await desk.slot()
        while looks < 6:
            await desk.end(slot, await desk.claim(slot, 7), Released("x"))
        await desk.end(slot, await desk.claim(slot, 7), BROKEN)
        await desk.end(slot, await desk.claim(slot, 7), Completed(1, (probe(),)))
        moving = False

    async def look() -> None:
        nonlocal looks
        while moving:
            assert len(await desk.states(*ids)) == 20
            listed = [job.id for job in await _list(desk) if job.parent_id is None]
            assert sorted(listed) == ids
            looks += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move)
            tasks.start_soon(look)


async def test_the_version_changes_with_everything_a_reader_sees(desk: Desk) -> None:
    (accepted,) = await desk.enqueue(probe())
    slot = await desk.slot()
    seen = [version(await desk.get(accepted.id))]
    assert version(await desk.get(accepted.id)) == seen[0]
    (job,) = await desk.claim(slot)
    seen.append(version(await desk.get(accepted.id)))
    await desk.end(slot, [job], Completed(1, (probe(),)))
    seen.append(version(await desk.get(accepted.id)))
    children = await desk.claim(slot)
    seen.append(version(await desk.get(accepted.id)))
    await desk.end(slot, children)
    seen.append(version(await desk.get(accepted.id)))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("cursor", ["", "x", "é", str(UUID(int=3)), "AAAA"])
async def test_a_cursor_that_no_page_gave_is_a_value_error(desk: Desk, cursor: str) -> None:
    async with desk.pool.acquire() as connection:
        with pytest.raises(ValueError, match="no cursor"):
            await lookup.list_jobs(connection, DEFAULT_TENANT, JobFilter(), cursor=cursor)
