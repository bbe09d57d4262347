"""The ticker on a real database and a virtual clock."""

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from jobs import ledger
from jobs.model import DEFAULT_TENANT, NewJob, Unique
from jobs.states import JobState
from runtime.postgres import Pool
from schedules import store, ticker
from schedules.follow import follow
from schedules.model import Adaptive, Cron, Every, Misfire, Overlap, ScheduleSpec
from schedules.retention import prune
from tests.schedules.conftest import NOON, World

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)


async def test_nothing_fires_before_its_time(world: World) -> None:
    schedule = await world.create()
    assert await world.ticker().tick(NOON + timedelta(seconds=59)) == 0
    assert await world.outcomes(schedule) == []
    assert await world.jobs() == 0


async def test_due_fire_is_a_job_of_the_schedule_announced_after_the_commit(world: World) -> None:
    schedule = await world.create()
    assert await world.ticker().tick(NOON + MINUTE) == 1
    async with world.pool.acquire() as connection:
        (fire,) = await store.runs(connection, DEFAULT_TENANT, schedule.id)
        job = await connection.fetchrow("SELECT id, schedule_id, kind FROM jobs")
    assert job is not None
    assert (fire.job_id, fire.fire_at) == (job["id"], NOON + MINUTE)
    assert (job["schedule_id"], job["kind"]) == (schedule.id, "probe")
    assert world.announced == [("probe", job["id"])]
    assert (await world.get(schedule)).next_at == NOON + 2 * MINUTE


async def test_two_tickers_at_once_make_one_fire_each(world: World) -> None:
    made = [await world.create(name=f"schedule {n}") for n in range(30)]
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(world.ticker().tick, NOON + MINUTE)
    assert [await world.outcomes(s) for s in made] == [[(NOON + MINUTE, "enqueued")]] * 30
    assert await world.jobs() == 30
    assert len(set(world.announced)) == len(world.announced) == 30


async def test_a_hundred_schedules_due_at_once_take_more_than_one_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker, "BATCH", 4)
    for number in range(10):
        await world.create(name=f"schedule {number}")
    assert await world.ticker().tick(NOON + MINUTE) == 10
    assert await world.jobs() == 10


async def test_death_before_the_commit_leaves_nothing_and_the_next_ticker_fires(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fire, its job and the next time are one transaction."""
    schedule = await world.create()
    enqueue = ledger.enqueue

    class Died(BaseException):
        """A process that ends asks no handler."""

    async def enqueue_and_die(*args: object, **kwargs: object) -> None:
        await enqueue(*args, **kwargs)  # type: ignore[arg-type] # passed on
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(ledger, "enqueue", enqueue_and_die)
        with pytest.raises(Died):
            await world.ticker().tick(NOON + MINUTE)
    assert await world.jobs() == 0
    assert await world.outcomes(schedule) == []
    assert await world.ticker().tick(NOON + MINUTE) == 1
    assert await world.jobs() == 1


async def test_clock_set_back_fires_nothing_twice_and_goes_on(world: World) -> None:
    """The clock ran a year ahead, fired, and was set right: nobody waits for a year."""
    schedule = await world.create(Cron("* * * * *"))
    ahead = NOON + timedelta(days=365)
    await world.ticker().tick(ahead)
    assert (await world.get(schedule)).next_at == ahead + MINUTE
    later = NOON + 10 * MINUTE
    await world.ticker().tick(later)
    assert (await world.get(schedule)).next_at == later + MINUTE
    await world.ticker().tick(later + MINUTE)
    await world.ticker().tick(later + MINUTE)
    fires = dict(sorted(await world.outcomes(schedule))[:1])
    assert fires == {later + MINUTE: "skipped"}
    assert await world.jobs() == 1


async def test_clock_set_back_over_a_fire_that_happened_makes_no_second_job(world: World) -> None:
    schedule = await world.create(Every(3600), overlap=Overlap.QUEUE)
    first = NOON + timedelta(hours=1)
    await world.ticker().tick(first)
    await world.ticker().tick(NOON + timedelta(minutes=30))
    assert (await world.get(schedule)).next_at == first
    await world.ticker().tick(first)
    assert await world.outcomes(schedule) == [(first, "enqueued")]
    assert await world.jobs() == 1
    assert (await world.get(schedule)).next_at == first + timedelta(hours=1)


async def test_period_whose_anchor_lies_in_the_future_starts_again_from_now(world: World) -> None:
    """It was made while the clock ran ahead."""
    schedule = await world.create(Every(60), now=NOON + timedelta(days=365))
    await world.ticker().tick(NOON)
    assert (await world.get(schedule)).next_at == NOON + MINUTE


@pytest.mark.parametrize(
    ("misfire", "jobs", "missed"), [(Misfire.SKIP, 0, 3), (Misfire.ONCE, 1, 2), (Misfire.ALL, 3, 0)]
)
async def test_downtime(world: World, misfire: Misfire, jobs: int, missed: int) -> None:
    schedule = await world.create(Cron("0 * * * *"), misfire=misfire, overlap=Overlap.QUEUE)
    await world.ticker().tick(NOON + timedelta(hours=3, minutes=30))
    assert await world.jobs() == jobs
    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    assert outcomes == ["missed"] * missed + ["enqueued"] * jobs
    told = await world.events("schedule.missed")
    assert [event["missed"] for event in told] == ([missed] if missed else [])
    assert all(event["name"] == "nightly" for event in told)


async def test_skip_waits_for_the_job_before_and_then_goes_on(world: World) -> None:
    schedule = await world.create(overlap=Overlap.SKIP)
    await world.ticker().tick(NOON + MINUTE)
    await world.ticker().tick(NOON + 2 * MINUTE)
    assert await world.work() == 1
    await world.ticker().tick(NOON + 3 * MINUTE)
    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    assert outcomes == ["enqueued", "skipped", "enqueued"]


async def test_queued_jobs_run_one_after_the_other(world: World) -> None:
    await world.create(overlap=Overlap.QUEUE)
    await world.ticker().tick(NOON + MINUTE)
    await world.ticker().tick(NOON + 2 * MINUTE)
    assert await world.jobs() == 2
    assert [await world.work(), await world.work(), await world.work()] == [1, 1, 0]


async def test_a_job_that_the_ledger_refuses_fails_alone_and_says_why(world: World) -> None:
    bad = await world.create(name="bad", kind="removed")
    good = await world.create(name="good")
    await world.ticker().tick(NOON + MINUTE)
    assert await world.outcomes(good) == [(NOON + MINUTE, "enqueued")]
    async with world.pool.acquire() as connection:
        (fire,) = await store.runs(connection, DEFAULT_TENANT, bad.id)
    assert (fire.outcome, fire.job_id) == ("refused", None)
    assert "removed" in (fire.detail or "")
    assert (await world.get(bad)).next_at == NOON + 2 * MINUTE


async def test_a_unique_job_that_still_waits_stands_for_the_next_fire(world: World) -> None:
    job = NewJob("probe", {}, unique=Unique("only-one"))
    async with world.pool.acquire() as connection:
        spec = ScheduleSpec("unique", job, Every(60), overlap=Overlap.QUEUE)
        schedule = await store.create(connection, DEFAULT_TENANT, spec, now=NOON)
    await world.ticker().tick(NOON + MINUTE)
    await world.ticker().tick(NOON + 2 * MINUTE)
    async with world.pool.acquire() as connection:
        second, first = await store.runs(connection, DEFAULT_TENANT, schedule.id)
    assert first.job_id == second.job_id
    assert "unique" in (second.detail or "")
    assert await world.jobs() == 1


async def test_a_poisoned_schedule_is_put_off_and_holds_up_nobody(world: World) -> None:
    """A zone that an update of the time-zone database removed, for one."""
    bad = await world.create(name="bad")
    good = await world.create(name="good")
    async with world.pool.acquire() as connection:
        await connection.execute(
            "UPDATE schedules SET timezone = 'Gone/Away' WHERE id = $1", bad.id
        )
    now = NOON + MINUTE
    await world.ticker().tick(now)
    assert await world.outcomes(good) == [(now, "enqueued")]
    assert await world.outcomes(bad) == []
    async with world.pool.acquire() as connection:
        await connection.execute("UPDATE schedules SET timezone = 'UTC' WHERE id = $1", bad.id)
    await world.ticker().tick(now + timedelta(seconds=59))
    assert await world.outcomes(bad) == []
    await world.ticker().tick(now + timedelta(seconds=60))
    assert [outcome for _, outcome in await world.outcomes(bad)] == ["missed", "enqueued"]


async def test_paused_fires_only_when_triggered_and_resume_misses_nothing(world: World) -> None:
    schedule = await world.create(misfire=Misfire.ALL)
    async with world.pool.acquire() as connection, connection.transaction():
        await store.pause(
            connection, DEFAULT_TENANT, schedule.id, actor="ops", reason="moving", now=NOON
        )
    await world.ticker().tick(NOON + 5 * MINUTE)
    assert await world.jobs() == 0
    async with world.pool.acquire() as connection, connection.transaction():
        fire, accepted = await store.trigger(
            connection, DEFAULT_TENANT, schedule.id,
            kinds=world.kinds, actor="ops", now=NOON + 5 * MINUTE,
        )  # fmt: skip
    assert (fire.job_id, fire.cause, fire.actor) == (accepted.id, "manual", "ops")
    assert accepted.state is JobState.QUEUED
    later = NOON + timedelta(minutes=7, seconds=30)
    async with world.pool.acquire() as connection, connection.transaction():
        await store.resume(connection, DEFAULT_TENANT, schedule.id, now=later)
    await world.ticker().tick(later)
    assert await world.jobs() == 1
    assert (await world.get(schedule)).next_at == NOON + 8 * MINUTE


async def settle_after(world: World, schedule_minutes: int, result: object) -> datetime:
    now = NOON + schedule_minutes * MINUTE
    assert await world.ticker().tick(now) == 1
    assert await world.work(result) == 1  # type: ignore[arg-type] # whatever a handler returns
    assert await follow(world.pool, now) == 1
    return now


async def test_recrawl_adapts_to_what_the_last_one_found(world: World) -> None:
    schedule = await world.create(Adaptive(60, 600))
    rest = {"pages": {"fetched": 0, "unchanged": 5}}
    now = await settle_after(world, 1, rest)
    seen = await world.get(schedule)
    assert (seen.interval_s, seen.next_at) == (90.0, now + timedelta(seconds=90))
    now = seen.next_at or NOON
    assert await world.ticker().tick(now) == 1
    assert await world.work(rest) == 1
    await follow(world.pool, now)
    seen = await world.get(schedule)
    assert (seen.interval_s, seen.next_at) == (180.0, now + timedelta(seconds=180))
    now = seen.next_at or NOON
    assert await world.ticker().tick(now) == 1
    assert await world.work({"pages": {"fetched": 2, "unchanged": 3}}) == 1
    await follow(world.pool, now)
    seen = await world.get(schedule)
    assert (seen.interval_s, seen.next_at) == (90.0, now + timedelta(seconds=90))


async def test_fires_keep_how_their_jobs_ended(world: World) -> None:
    schedule = await world.create()
    now = NOON + MINUTE
    await world.ticker().tick(now)
    assert await follow(world.pool, now) == 0
    await world.work()
    assert await follow(world.pool, now + timedelta(milliseconds=900)) == 0
    assert await follow(world.pool, now + timedelta(seconds=1)) == 1
    async with world.pool.acquire() as connection:
        (fire,) = await store.runs(connection, DEFAULT_TENANT, schedule.id)
    assert fire.job_state is JobState.SUCCEEDED
    assert fire.settled_at == now + timedelta(seconds=1)


async def test_retention_keeps_fires_whose_jobs_run(world: World, db: Pool) -> None:
    settled, running = await world.create(name="a"), await world.create(name="b")
    await world.ticker().tick(NOON + MINUTE)
    async with db.acquire() as connection:
        await connection.execute(
            "UPDATE schedule_fires SET look_at = NULL, settled_at = $2 WHERE schedule_id = $1",
            settled.id,
            NOON,
        )
        assert await prune(connection, before=NOON + timedelta(days=1)) == 1
        assert await prune(connection, before=NOON + timedelta(days=1)) == 0
    assert await world.outcomes(settled) == []
    assert len(await world.outcomes(running)) == 1


async def test_run_fires_by_the_databases_clock_and_survives_a_lost_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop itself, in real time: a pass that fails is logged, the next one fires."""
    schedule = await world.create(Every(1), now=datetime(2026, 1, 1, tzinfo=UTC))
    fired = anyio.Event()
    passes = 0
    real = ticker.fire_all

    async def fire_all(*args: object) -> object:
        nonlocal passes
        passes += 1
        if passes == 1:
            raise ConnectionResetError
        ready = await real(*args)  # type: ignore[arg-type] # passed on
        fired.set()
        return ready

    monkeypatch.setattr(ticker, "fire_all", fire_all)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: world.ticker().run(poll_s=0.05))
            await fired.wait()
            group.cancel_scope.cancel()
    assert passes >= 2
    assert (await world.outcomes(schedule))[-1][1] in {"enqueued", "skipped"}
