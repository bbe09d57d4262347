"""The tick role as processes: two at once, one killed, connections lost, told to stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

from jobs import dispatch, limits, operations
from jobs.matching import OperationAction, OperationFilter, Wanted
from jobs.model import DEFAULT_TENANT, NewJob
from jobs.operations import Operation
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from schedules import store
from schedules.model import Every, Overlap, Schedule, ScheduleSpec
from tests.jobs.desk import HOPELESS, Desk, probe
from tests.support.repository import ROOT
from tests.webhooks.receiver import receiver, reply

pytestmark = [pytest.mark.anyio, pytest.mark.crash]

STOP_WITHIN_S = 20


@contextmanager
def tick_process(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the role, ended whatever happens."""
    environment = os.environ | {
        "XNAI_DATABASE_URL": str(settings.database_url),
        "XNAI_REDIS_URL": str(settings.redis_url),
        "XNAI_DATA_DIR": str(settings.data_dir),
        "XNAI_EGRESS_ALLOW": "127.0.0.0/8",
        "XNAI_TICK_S": "0.1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "cli.roles", "tick"], cwd=ROOT, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def every_second(pool: Pool) -> Schedule:
    """Its jobs need not wait for each other, so that each fire makes one that is announced."""
    async with pool.acquire() as connection:
        spec = ScheduleSpec("s", NewJob("probe", {}), Every(1), overlap=Overlap.QUEUE)
        schedule = await store.create(connection, DEFAULT_TENANT, spec)
        await limits.put(connection, DEFAULT_TENANT, f"schedule:{schedule.id}", 100)
    return schedule


async def wake_ups(redis: Client, count: int) -> None:
    """Return when so many jobs have been announced."""
    with anyio.fail_after(30):
        for _ in range(count):
            # Shorter than the client's patience for an answer.
            while await dispatch.wait(redis, "probe", 1) is None:
                continue


async def fires_and_jobs(pool: Pool, schedule: Schedule) -> tuple[int, int]:
    async with pool.acquire() as connection:
        enqueued = await connection.fetchval(
            "SELECT count(*) FROM schedule_fires WHERE schedule_id = $1 AND outcome = 'enqueued'",
            schedule.id,
        )
        jobs = await connection.fetchval("SELECT count(*) FROM jobs")
    return enqueued, jobs


async def test_schedules_and_callbacks_outlive_a_killed_ticker_and_lost_connections(
    db: Pool, redis: Client, settings: Settings
) -> None:
    schedule = await every_second(db)
    with tick_process(settings) as first, tick_process(settings) as second:
        await wake_ups(redis, 1)
        first.kill()
        await wake_ups(redis, 2)
        async with db.acquire() as connection:
            ended = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'xnai tick' AND datname = current_database()"
            )
        assert ended >= 1
        await wake_ups(redis, 3)
        async with receiver(reply(500), reply(200)) as there:
            async with db.acquire() as connection:
                await connection.execute(
                    "INSERT INTO outbox (tenant_id, url, type, data) VALUES (1, $1, 'x', '{}')",
                    there.url,
                )
            await there.until(1)
        second.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(second.wait, STOP_WITHIN_S) == 0
    fires, jobs = await fires_and_jobs(db, schedule)
    assert fires == jobs >= 6


async def test_a_bulk_operation_outlives_a_killed_ticker(db: Pool, settings: Settings) -> None:
    desk = Desk(db)
    jobs = await desk.enqueue(*(probe() for _ in range(4000)))
    slot = await desk.slot()
    while claimed := await desk.claim(slot, 1000):
        await desk.end(slot, claimed, HOPELESS)
    wanted = Wanted(DEFAULT_TENANT, OperationAction.RETRY, OperationFilter(kind="probe"))
    async with db.acquire() as connection, connection.transaction():
        operation = await operations.accept(connection, wanted, actor="ann")
    with tick_process(settings) as first:
        assert (await until(db, operation, lambda now: now.done > 0)).done <= len(jobs)
        first.kill()
        with tick_process(settings):
            done = await until(db, operation, lambda now: now.finished_at is not None)
    assert (done.state, done.done, done.skipped) == ("succeeded", len(jobs), 0)
    async with db.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM ready") == len(jobs)


async def until(pool: Pool, operation: Operation, is_so: Callable[[Operation], bool]) -> Operation:
    """Look at the operation until it is so."""
    with anyio.fail_after(60):
        while True:
            async with pool.acquire() as connection:
                now = await operations.get(connection, operation.tenant_id, operation.id)
            if is_so(now):
                return now
            await anyio.sleep(0.01)


async def test_told_to_stop_it_finishes_the_delivery_under_way(
    db: Pool, settings: Settings
) -> None:
    answer = anyio.Event()

    async def slowly(stream: anyio.abc.SocketStream) -> None:
        await answer.wait()
        await stream.send(reply(200))

    async with receiver(slowly) as there:
        async with db.acquire() as connection:
            await connection.execute(
                "INSERT INTO outbox (tenant_id, url, type, data) VALUES (1, $1, 'x', '{}')",
                there.url,
            )
        with tick_process(settings) as process:
            await there.until(1)
            process.send_signal(signal.SIGTERM)
            answer.set()
            assert await anyio.to_thread.run_sync(process.wait, STOP_WITHIN_S) == 0
    async with db.acquire() as connection:
        assert await connection.fetchval("SELECT state FROM deliveries") == "delivered"
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
