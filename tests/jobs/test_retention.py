"""Forgetting, and what operators see of pools."""

from datetime import UTC, datetime, timedelta

import pytest

from jobs import events, idempotency, ledger, pools, retention
from jobs.events import EventScope
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, Unique
from jobs.outcomes import Completed
from jobs.pools import Pool, retry_after_s
from tests.jobs.desk import Desk, probe

pytestmark = pytest.mark.anyio

LONG_AGO = datetime(2020, 2, 3, 12, tzinfo=UTC)


async def test_old_days_are_dropped_and_new_ones_made(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        assert await retention.make_partitions(connection, days_ahead=3, now=LONG_AGO) == 9
        assert await retention.make_partitions(connection, days_ahead=3, now=LONG_AGO) == 0
        (old,) = await ledger.enqueue(
            connection, DEFAULT_TENANT, [probe()], kinds=desk.kinds, now=LONG_AGO
        )
        (new,) = await desk.enqueue(probe())
        slot = await desk.slot()
        one, other = await desk.claim(slot)
        await ledger.record(
            connection,
            slot,
            [ledger.Ended(one, Completed(1))],
            kinds=desk.kinds,
            rng=desk.rng,
            now=LONG_AGO,
        )
        await desk.end(slot, [other])
        (first, *_) = await events.after(connection, EventScope(DEFAULT_TENANT), None)
        assert first.job_id == old.id
        kept = await retention.prune(connection, days=1, now=LONG_AGO + timedelta(days=1))
        assert kept.partitions == ()
        pruned = await retention.prune(connection, days=7)
        assert {"history_20200203", "events_20200203", "attempts_20200203"} <= set(
            pruned.partitions
        )
        assert await desk.states(old.id, new.id) == ["succeeded"]
        assert await connection.fetchval("SELECT xid::text FROM events_dropped") != "0"
        await connection.execute("UPDATE events_dropped SET xid = '0'")


async def test_what_hangs_on_old_jobs_goes_in_steps(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        # Days that another test has dropped: their rows would count, one by one.
        await retention.make_partitions(connection)
    await desk.enqueue(probe(unique=Unique("k", "time", 1.0)), probe(concurrency_key="once"))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot), Completed(1, (probe(),)))
    await desk.end(slot, await desk.claim(slot))
    async with desk.pool.acquire() as connection, connection.transaction():
        await idempotency.begin(connection, DEFAULT_TENANT, "k", b"1")
    later = datetime.now(UTC) + timedelta(days=30)
    async with desk.pool.acquire() as connection:
        # A limit that nobody has set; later two families, a unique and an idempotency key.
        step = await retention.prune(connection, days=40, limit=1, now=datetime.now(UTC))
        assert (step.rows, step.more) == (1, True)
        rest = await retention.prune(connection, days=20, limit=100, now=later)
        assert (rest.rows, rest.more) == (4, False)
        # The audit after this test wants what the history still holds.
        await connection.execute("DELETE FROM history")


async def test_pools_tell_their_depth_and_what_was_never_announced(desk: Desk) -> None:
    accepted = await desk.enqueue(*(probe() for _ in range(5)))
    slot = await desk.slot()
    await desk.end(slot, await desk.claim(slot, 2))
    await desk.claim(slot, 1)
    async with desk.pool.acquire() as connection:
        found = {
            pool.name: pool
            for pool in await pools.list_pools(connection, ["embed"], kinds=load_kinds())
        }
        waiting = await pools.unannounced(connection, older_than_s=0.0)
        assert await pools.unannounced(connection, older_than_s=60.0) == {}
        await pools.pause(connection, "probe", by="ann")
        assert await pools.unannounced(connection, older_than_s=0.0) == {}
    assert set(found) == {"embed", "probe"}
    own = found["probe"]
    assert (own.queued, own.running, own.slots) == (2, 1, 1)
    assert own.oldest_s is not None
    assert own.drained_per_s == pytest.approx(2 / 60)
    assert waiting == {"probe": tuple(job.id for job in accepted[3:])}


@pytest.mark.parametrize(
    ("rate", "excess", "expected"), [(0.0, 1, 300), (10.0, 1, 1), (10.0, 95, 10), (0.1, 999, 300)]
)
def test_retry_after_follows_the_measured_rate(rate: float, excess: int, expected: int) -> None:
    pool = Pool("p", None, None, None, 1, 0, 0, None, rate)
    assert retry_after_s(pool, excess) == expected
