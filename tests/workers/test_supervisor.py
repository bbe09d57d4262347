"""Slots under a real supervisor: run, retry, time out, cancel, crash, drain."""

import os
import signal
from pathlib import Path
from uuid import UUID

import anyio
import psutil
import pytest

from jobs import ledger, lookup, slots
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, Job, JsonValue, NewJob
from jobs.states import JobState
from runtime.postgres import Pool
from tests.workers.conftest import StartWork

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

KINDS = load_kinds()


async def submit(db: Pool, count: int = 1, **fields: JsonValue) -> list[UUID]:
    options = {name: fields.pop(name) for name in ("max_attempts", "timeout_s") if name in fields}
    jobs = [NewJob("probe", fields, **options) for _ in range(count)]  # type: ignore[arg-type] # test options
    async with db.acquire() as connection:
        accepted = await ledger.enqueue(connection, DEFAULT_TENANT, jobs, kinds=KINDS)
    return [job.id for job in accepted]


async def wait_for(db: Pool, ids: list[UUID], *states: JobState, within_s: float = 30) -> list[Job]:
    with anyio.fail_after(within_s):
        while True:
            async with db.acquire() as connection:
                jobs = await lookup.get_many(connection, DEFAULT_TENANT, ids)
            if all(job.state in states for job in jobs):
                return jobs
            await anyio.sleep(0.02)


async def test_jobs_run_and_their_results_are_kept(db: Pool, start_work: StartWork) -> None:
    start_work("probe")
    ids = await submit(db, 300, echo="hello")
    jobs = await wait_for(db, ids, JobState.SUCCEEDED)
    assert all(job.result == {"echo": "hello"} and job.attempt == 1 for job in jobs)


async def test_a_failing_job_uses_up_its_budget_and_is_a_dead_letter(
    db: Pool, start_work: StartWork
) -> None:
    start_work("probe", XNAI_BACKOFF_S="0.01", XNAI_BACKOFF_MAX_S="0.02", XNAI_SWEEP_S="0.05")
    ids = await submit(db, outcome="retry", max_attempts=3)
    (job,) = await wait_for(db, ids, JobState.FAILED)
    assert job.attempt == 3
    assert job.error is not None
    assert job.error["type"] == "probe_retry"


async def test_a_permanent_failure_is_not_tried_again(db: Pool, start_work: StartWork) -> None:
    start_work("probe")
    (job,) = await wait_for(db, await submit(db, outcome="fail"), JobState.FAILED)
    assert job.attempt == 1


async def test_a_slot_that_dies_is_replaced_and_its_job_runs_again(
    db: Pool, start_work: StartWork
) -> None:
    supervisor = start_work("probe")
    ids = await submit(db, sleep_s=5)
    await wait_for(db, ids, JobState.RUNNING)
    (slot,) = [
        child
        for child in psutil.Process(supervisor.pid).children()
        if "slot" in " ".join(child.cmdline())
    ]
    slot.kill()
    (job,) = await wait_for(db, ids, JobState.SUCCEEDED, within_s=20)
    assert job.attempt == 2


async def test_a_job_that_kills_its_slot_each_time_is_quarantined(
    db: Pool, start_work: StartWork
) -> None:
    start_work("probe")
    innocent = await submit(db, 5, sleep_s=0.3)
    ids = await submit(db, outcome="crash", max_attempts=10)
    (job,) = await wait_for(db, ids, JobState.FAILED, within_s=60)
    assert job.error is not None
    assert job.error["type"] == "worker_lost"
    await wait_for(db, innocent, JobState.SUCCEEDED, within_s=60)


async def test_a_busy_loop_ends_at_its_timeout(db: Pool, start_work: StartWork) -> None:
    start_work("probe")
    ids = await submit(db, outcome="hang", timeout_s=0.5, max_attempts=1)
    (job,) = await wait_for(db, ids, JobState.FAILED)
    assert job.error is not None
    assert job.error["type"] == "timeout"


async def test_a_sleeping_job_is_cancelled_cooperatively(db: Pool, start_work: StartWork) -> None:
    supervisor = start_work("probe")
    ids = await submit(db, sleep_s=60)
    await wait_for(db, ids, JobState.RUNNING)
    before = psutil.Process(supervisor.pid).children()
    async with db.acquire() as connection:
        await ledger.cancel(connection, DEFAULT_TENANT, ids)
    await wait_for(db, ids, JobState.CANCELLED, within_s=5)
    assert psutil.Process(supervisor.pid).children() == before


async def test_a_drain_gives_running_attempts_back(db: Pool, start_work: StartWork) -> None:
    supervisor = start_work("probe", XNAI_GRACE_S="0.2")
    ids = await submit(db, sleep_s=60)
    await wait_for(db, ids, JobState.RUNNING)
    supervisor.send_signal(signal.SIGTERM)
    with anyio.fail_after(15):
        assert await anyio.to_thread.run_sync(supervisor.wait) == 0
    (job,) = await wait_for(db, ids, JobState.QUEUED)
    assert job.error is None


async def test_a_dead_supervisor_takes_its_slots_along_and_others_rescue(
    db: Pool, start_work: StartWork
) -> None:
    first = start_work("probe")
    ids = await submit(db, sleep_s=2)
    await wait_for(db, ids, JobState.RUNNING)
    children = psutil.Process(first.pid).children()
    first.kill()
    start_work("probe")
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    (job,) = await wait_for(db, ids, JobState.SUCCEEDED, within_s=30)
    assert job.attempt == 2


async def test_a_slot_is_pinned_to_the_cpus_of_its_pool(db: Pool, start_work: StartWork) -> None:
    cpu = max(os.sched_getaffinity(0))
    supervisor = start_work("probe", XNAI_POOLS=f"probe=1x1@{cpu}")
    await wait_for(db, await submit(db), JobState.SUCCEEDED)
    (slot,) = psutil.Process(supervisor.pid).children()
    status = Path(f"/proc/{slot.pid}/status").read_text(encoding="ascii")
    assert f"Cpus_allowed_list:\t{cpu}\n" in status
    async with db.acquire() as connection:
        (row,) = [row for row in await slots.live(connection) if row.pool == "probe"]
    assert row.cores == (cpu,)
