"""A drain by a real supervisor is measured and proven, and a wrong ledger is not believed."""

from collections.abc import Iterator, Sequence

import asyncpg
import pytest

from cli import trial
from jobs.kinds import load_kinds
from jobs.model import NewJob
from runtime.pools import PoolSpec
from runtime.postgres import Connection, Pool
from runtime.redis import Client
from runtime.settings import Settings

pytestmark = pytest.mark.anyio

JOBS = 2000
# Each takes away or adds something that recording writes.
WRONG = {
    "an event is missing": "DELETE FROM events WHERE ctid = (SELECT min(ctid) FROM events)",
    "an event tells another job's end": (
        "UPDATE events SET job_id = (SELECT min(job_id::text)::uuid FROM events)"
        " WHERE type = 'job.succeeded'"
    ),
    "a job is not in the history": (
        "DELETE FROM history WHERE id = (SELECT min(id::text)::uuid FROM history)"
    ),
    "a job failed": (
        "UPDATE history SET state = 'failed' WHERE id = (SELECT min(id::text)::uuid FROM history)"
    ),
    "a batch counted one more": (
        "UPDATE batch_counts SET succeeded = succeeded + 1"
        " WHERE ctid = (SELECT min(ctid) FROM batch_counts)"
    ),
    "a job is still queued": (
        "INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)"
        " VALUES (gen_random_uuid(), 'probe', now(), 'probe', 1)"
    ),
}


async def test_drain_is_recorded_and_a_wrong_ledger_is_not_believed(
    db: Pool, redis: Client, settings: Settings
) -> None:
    own = settings.model_copy(update={"pools": {trial.POOL: PoolSpec(slots=1)}})
    kinds = load_kinds(())
    async with db.acquire() as connection:
        await trial.accept(connection, redis, kinds, [NewJob("probe", {})] * JOBS)
        async with trial.supervisor(own):
            drained = await trial.drain(lambda: trial.sample(connection), jobs=JOBS, slots=1)
        assert drained.slots == 1
        assert 0 < drained.jobs <= JOBS
        assert drained.jobs_per_s > 0
        await trial.assert_recorded(connection, jobs=JOBS)
        for what, statement in WRONG.items():
            change = connection.transaction()
            await change.start()
            await connection.execute(statement)
            with pytest.raises(trial.TrialError, match="the ledger is wrong"):
                await _assert_wrong(connection, what)
            await change.rollback()
        await trial.assert_recorded(connection, jobs=JOBS)


async def _assert_wrong(connection: Connection, what: str) -> None:
    await trial.assert_recorded(connection, jobs=JOBS)
    pytest.fail(f"{what}, and nobody has noticed")


async def test_fewer_jobs_than_accepted_are_noticed(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    with pytest.raises(trial.TrialError, match="jobs is 0 instead of 1"):
        await trial.assert_recorded(connection, jobs=1)


def _script(*samples: tuple[float, tuple[int, ...]]) -> Iterator[trial.Sample]:
    return iter([trial.Sample(at_s, done) for at_s, done in samples])


async def _measured(samples: Iterator[trial.Sample], jobs: int, slots: int) -> trial.Drained:
    begun: list[int] = []

    async def look() -> trial.Sample:
        return next(samples)

    async def begin() -> None:
        begun.append(1)

    drained = await trial.drain(look, jobs=jobs, slots=slots, on_begin=begin)
    assert begun
    return drained


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (
            [(0.0, ()), (1.0, (100,)), (2.0, (150, 50)), (3.0, (200, 200)), (4.0, (300, 300))],
            trial.Drained(jobs=400, seconds=2.0, slots=2),
        ),
        (
            [(0.0, ()), (1.0, (100,)), (2.0, (400,)), (3.0, (600,))],
            trial.Drained(jobs=500, seconds=2.0, slots=1),
        ),
    ],
    ids=["from the last slot's start", "one slot alone was enough"],
)
async def test_the_start_of_the_slots_is_not_measured(
    samples: Sequence[tuple[float, tuple[int, ...]]], expected: trial.Drained
) -> None:
    assert await _measured(_script(*samples), jobs=600, slots=2) == expected


async def test_a_drain_that_stands_still_is_an_error() -> None:
    with pytest.raises(trial.TrialError, match="stands still at 10 of 600"):
        await _measured(_script((0.0, ()), (1.0, (10,)), (40.0, (10,))), jobs=600, slots=1)
