"""The verbs that users have, on a real database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import anyio
import pytest

from jobs.errors import LedgerError
from jobs.model import DEFAULT_TENANT, NewJob, TenantId, Unique
from runtime.postgres import Pool
from schedules import store
from schedules.errors import (
    ScheduleChanged,
    ScheduleNameTaken,
    ScheduleNotFound,
    ScheduleRefused,
)
from schedules.model import Adaptive, Cron, Every, Misfire, Overlap, ScheduleSpec
from schedules.spec import check
from tests.schedules.conftest import NOON, World

pytestmark = pytest.mark.anyio

STRANGER = TenantId(2)
SPEC = ScheduleSpec(
    name="nightly docs – ü",
    job=NewJob(
        "crawl",
        {"url": "https://example.org/"},
        priority=7,
        max_attempts=2,
        timeout_s=30.5,
        unique=Unique("docs", "time", 60.0),
        concurrency_key="docs",
        tags=("a", "b"),
        callback_url="https://example.org/hook",
    ),
    timing=Cron("30 2 * * *"),
    timezone="Europe/Berlin",
    jitter_s=300.0,
    misfire=Misfire.SKIP,
    overlap=Overlap.QUEUE,
)


async def test_what_was_asked_for_is_what_is_kept(db: Pool) -> None:
    async with db.acquire() as connection:
        made = await store.create(connection, DEFAULT_TENANT, SPEC, now=NOON)
        read = await store.get(connection, DEFAULT_TENANT, made.id)
    assert made == read
    assert read.spec == SPEC
    assert read.next_at == datetime(2030, 5, 2, 0, 30, tzinfo=UTC)
    assert read.due_at is not None
    assert timedelta(0) <= read.due_at - read.next_at < timedelta(seconds=300)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"name": "a\x00b"}, "/name"),
        ({"name": " a"}, "/name"),
        ({"timezone": "Mars/Olympus"}, "/timezone"),
        ({"timing": Cron("* * *")}, "/cron"),
        ({"timing": Every(0.5)}, "/every_s"),
        ({"timing": Every(float("nan"))}, "/every_s"),
        ({"timing": Every(float("inf"))}, "/every_s"),
        ({"timing": Adaptive(-1, 10)}, "/adaptive/min_s"),
        ({"timing": Adaptive(60, 59)}, "/adaptive/max_s"),
        ({"jitter_s": -1.0}, "/jitter_s"),
        ({"jitter_s": float("nan")}, "/jitter_s"),
        ({"job": NewJob("probe", {}, run_at=NOON)}, "/job/run_at"),
        ({"job": NewJob("probe", {}, delay_s=1)}, "/job/delay_s"),
        ({"job": NewJob("probe", {}, expires_at=NOON)}, "/job/expires_at"),
        ({"job": NewJob("probe", {}, depends_on=("x",))}, "/job/depends_on"),
        ({"job": NewJob("probe", {}, custom_id="x")}, "/job/custom_id"),
    ],
)
async def test_an_invalid_field_is_named(change: dict[str, object], pointer: str) -> None:
    with pytest.raises(ScheduleRefused) as refused:
        check(replace(SPEC, **change))  # type: ignore[arg-type] # wrong on purpose
    assert refused.value.pointer == pointer


async def test_a_cron_that_never_comes_is_refused(db: Pool) -> None:
    """Only together do its fields exclude each other: no February has a 31st Monday."""
    spec = replace(SPEC, timing=Cron("0 0 31 2 */2"), jitter_s=0.0)
    async with db.acquire() as connection:
        with pytest.raises(ScheduleRefused) as refused:
            await store.create(connection, DEFAULT_TENANT, spec, now=NOON)
    assert refused.value.pointer == "/cron"


async def test_a_name_is_unique_in_its_tenant_and_refusal_keeps_the_transaction(db: Pool) -> None:
    async with db.acquire() as connection, connection.transaction():
        await connection.execute("INSERT INTO tenants (id, name) VALUES (2, 'stranger')")
        first = await store.create(connection, DEFAULT_TENANT, SPEC)
        with pytest.raises(ScheduleNameTaken):
            await store.create(connection, DEFAULT_TENANT, SPEC)
        other = await store.create(connection, DEFAULT_TENANT, replace(SPEC, name="other"))
        with pytest.raises(ScheduleNameTaken):
            await store.update(connection, DEFAULT_TENANT, other.id, SPEC)
        await store.create(connection, STRANGER, SPEC)
        found = await store.list_schedules(connection, DEFAULT_TENANT)
        await connection.execute("DELETE FROM schedules WHERE tenant_id = 2")
        await connection.execute("DELETE FROM tenants WHERE id = 2")
    assert [schedule.id for schedule in found] == [first.id, other.id]


async def test_two_creators_of_one_name_leave_one_schedule(db: Pool) -> None:
    refused: list[str] = []

    async def create() -> None:
        async with db.acquire() as connection:
            try:
                await store.create(connection, DEFAULT_TENANT, SPEC)
            except ScheduleNameTaken as error:
                refused.append(error.name)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(create)
    async with db.acquire() as connection:
        assert len(await store.list_schedules(connection, DEFAULT_TENANT)) == 1
    assert refused == [SPEC.name] * 3


async def test_another_tenants_schedule_does_not_exist(world: World) -> None:
    schedule = await world.create()
    async with world.pool.acquire() as connection:
        for verb in (
            store.get(connection, STRANGER, schedule.id),
            store.delete(connection, STRANGER, schedule.id),
            store.pause(connection, STRANGER, schedule.id, actor="x"),
            store.resume(connection, STRANGER, schedule.id),
            store.runs(connection, STRANGER, schedule.id),
            store.preview(connection, STRANGER, schedule.id, 3),
            store.update(connection, STRANGER, schedule.id, SPEC),
            store.trigger(connection, STRANGER, schedule.id, kinds=world.kinds, actor="x"),
            store.get(connection, DEFAULT_TENANT, uuid4()),
        ):
            with pytest.raises(ScheduleNotFound):
                await verb


async def test_pages_follow_the_order_of_creation(world: World) -> None:
    made = [(await world.create(name=f"s{n}")).id for n in range(5)]
    async with world.pool.acquire() as connection:
        first = await store.list_schedules(connection, DEFAULT_TENANT, limit=2)
        rest = await store.list_schedules(connection, DEFAULT_TENANT, after=first[-1].id)
    assert [schedule.id for schedule in first + rest] == made


async def test_update_counts_a_new_timing_from_now_and_keeps_an_old_one(world: World) -> None:
    schedule = await world.create(Every(600))
    later = NOON + timedelta(minutes=7)
    async with world.pool.acquire() as connection:
        renamed = await store.update(
            connection, DEFAULT_TENANT, schedule.id, replace(schedule.spec, name="x"), now=later
        )
        assert renamed.next_at == NOON + timedelta(minutes=10)
        faster = await store.update(
            connection, DEFAULT_TENANT, schedule.id, replace(schedule.spec, timing=Every(60)),
            version=renamed.version, now=later,
        )  # fmt: skip
        assert faster.next_at == later + timedelta(minutes=1)
        with pytest.raises(ScheduleChanged):
            await store.update(
                connection, DEFAULT_TENANT, schedule.id, schedule.spec, version=renamed.version
            )
        adaptive = replace(schedule.spec, timing=Adaptive(30, 60))
        changed = await store.update(connection, DEFAULT_TENANT, schedule.id, adaptive, now=later)
    assert changed.interval_s == 30
    assert changed.next_at == later + timedelta(seconds=30)


async def test_update_of_a_paused_one_does_not_wake_it(world: World) -> None:
    schedule = await world.create()
    async with world.pool.acquire() as connection:
        await store.pause(connection, DEFAULT_TENANT, schedule.id, actor="ops", reason="why")
        changed = await store.update(
            connection, DEFAULT_TENANT, schedule.id, replace(schedule.spec, timing=Every(5))
        )
    assert changed.next_at is None
    assert changed.pause is not None
    assert (changed.pause.by, changed.pause.reason) == ("ops", "why")


async def test_pause_and_resume_are_idempotent_and_the_first_reason_stays(world: World) -> None:
    schedule = await world.create()
    async with world.pool.acquire() as connection:
        first = await store.pause(connection, DEFAULT_TENANT, schedule.id, actor="a", reason="one")
        again = await store.pause(connection, DEFAULT_TENANT, schedule.id, actor="b", reason="two")
        assert first == again
        assert again.pause is not None
        assert (again.pause.by, again.pause.reason) == ("a", "one")
        woken = await store.resume(connection, DEFAULT_TENANT, schedule.id, now=NOON)
        assert woken.pause is None
        assert woken.next_at == NOON + timedelta(minutes=1)
        assert await store.resume(connection, DEFAULT_TENANT, schedule.id) == woken


async def test_triggers_in_the_same_instant_are_two_fires(world: World) -> None:
    schedule = await world.create()
    fires = []
    for _ in range(2):
        async with world.pool.acquire() as connection, connection.transaction():
            fire, _ = await store.trigger(
                connection, DEFAULT_TENANT, schedule.id, kinds=world.kinds, actor="me", now=NOON
            )
            fires.append(fire)
    assert [fire.fire_at for fire in fires] == [NOON, NOON + timedelta(microseconds=1)]
    assert await world.jobs() == 2
    assert (await world.get(schedule)).next_at == schedule.next_at


async def test_a_trigger_that_the_ledger_refuses_leaves_no_fire(world: World) -> None:
    schedule = await world.create(kind="removed")
    async with world.pool.acquire() as connection:
        with pytest.raises(LedgerError, match="removed"):
            async with connection.transaction():
                await store.trigger(
                    connection, DEFAULT_TENANT, schedule.id, kinds=world.kinds, actor="me"
                )
    assert await world.outcomes(schedule) == []


async def test_preview_is_what_will_fire(world: World) -> None:
    schedule = await world.create(Cron("0 3 * * *"), timezone="Europe/Berlin", jitter_s=60)
    async with world.pool.acquire() as connection:
        dues = await store.preview(connection, DEFAULT_TENANT, schedule.id, 3, now=NOON)
        capped = await store.preview(connection, DEFAULT_TENANT, schedule.id, 10_000, now=NOON)
    assert [due.fire_at.hour for due in dues] == [1, 1, 1]
    assert (dues[0].fire_at, dues[0].due_at) == (schedule.next_at, schedule.due_at)
    assert len(capped) == store.PREVIEW_MAX
    assert dues[0].due_at > NOON
    await world.ticker().tick(dues[0].due_at)
    moved = await world.get(schedule)
    assert (moved.next_at, moved.due_at) == (dues[1].fire_at, dues[1].due_at)


async def test_delete_takes_the_fires_and_leaves_the_jobs(world: World) -> None:
    schedule = await world.create()
    await world.ticker().tick(NOON + timedelta(minutes=1))
    async with world.pool.acquire() as connection:
        await store.delete(connection, DEFAULT_TENANT, schedule.id)
        assert await connection.fetchval("SELECT count(*) FROM schedule_fires") == 0
    assert await world.jobs() == 1
