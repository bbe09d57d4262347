"""A verb reads the rows that it is asked for and a few around them, however many others there are,
whatever the planner believes of them, and whether a plan is made for its arguments or for any.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import pytest

from jobs import batches, idempotency, ledger, limits, lookup, pools, retention
from jobs.model import DEFAULT_TENANT, NewJob, SlotId, Unique
from jobs.outcomes import Completed, Failed
from jobs.results import Ended
from jobs.spool import Spool
from runtime.postgres import Connection
from tests.jobs.desk import BROKEN, DONE, Desk, spooled
from tests.support.planner import PLAN_MODES, Belief, filled, rows_read

pytestmark = pytest.mark.anyio

ROWS = 6_000
ASKED = 20
# Some tables and a few looks at each job, and never a table as a whole.
READ_MAX = 1_000
BATCH, NEW_BATCH = UUID(int=5), UUID(int=6)
NOW = datetime.now(UTC)
TABLES = (
    "jobs", "ready", "held", "parked", "history", "attempts", "events", "unique_keys", "limits",
    "dependencies", "batch_counts", "idempotency_keys",
)  # fmt: skip

# Of ten jobs: four queued, two due later, two waiting for a permit of their key, two for a parent.
FILL = """
WITH new_job AS (
    SELECT lpad(to_hex(n), 32, '0')::uuid AS id, n, 'k' || n AS key,
        CASE WHEN n % 10 < 4 THEN NULL WHEN n % 10 < 6 THEN 'delayed' WHEN n % 10 < 8 THEN 'limit'
            ELSE 'dependency' END AS reason,
        CASE WHEN n % 10 IN (6, 7) THEN 'k' || n END AS concurrency_key
    FROM generate_series(1, $1::int) AS n
), kept AS (
    INSERT INTO jobs (id, tenant_id, kind, pool, payload, priority, run_at, sort_at, created_at,
        max_attempts, custom_id, batch_id, unique_key, unique_until, concurrency_key,
        pending_parents, has_dependents, expires_at)
    SELECT id, 1, 'probe', 'probe', '{}', 4, now(), now(), now(), 3, 'c' || n, $2::uuid, key,
        'finished', concurrency_key, (n % 10 >= 8)::int, n % 10 < 2, now() + n * interval '1 hour'
    FROM new_job
), queued AS (
    INSERT INTO ready (job_id, pool, sort_at, kind, tenant_id)
    SELECT id, 'probe', now() + n * interval '1 ms', 'probe', 1 FROM new_job WHERE reason IS NULL
), waiting AS (
    INSERT INTO parked (job_id, reason, run_at, sort_at, pool, kind, tenant_id, concurrency_key,
        batch_id)
    SELECT id, reason, now() + n * interval '1 s', now(), 'probe', 'probe', 1, concurrency_key, $2
    FROM new_job WHERE reason IS NOT NULL
), keys AS (
    INSERT INTO unique_keys (tenant_id, key, job_id, until) SELECT 1, key, id, 'finished'
    FROM new_job
), permits AS (
    INSERT INTO limits (tenant_id, key, in_use) SELECT 1, key, 1 FROM new_job
), edges AS (
    INSERT INTO dependencies (parent_id, job_id)
    SELECT lpad(to_hex(n - 8), 32, '0')::uuid, id FROM new_job WHERE n % 10 >= 8
), requests AS (
    INSERT INTO idempotency_keys (tenant_id, key, request_hash, created_at)
    SELECT 1, key, '', now() - interval '40 days' - n * interval '1 ms' FROM new_job
), told AS (
    INSERT INTO events (at, tenant_id, type, job_id, kind)
    SELECT CASE WHEN n % 2 = 0 THEN now() ELSE now() - interval '40 days' END, 1, 'job.succeeded',
        gen_random_uuid(), 'probe'
    FROM new_job
), counted AS (
    INSERT INTO batch_counts (batch_id, writer, total)
    SELECT md5(key)::uuid, 0, 1 FROM new_job
), tried AS (
    INSERT INTO attempts (job_id, attempt, tenant_id, finished_at, outcome)
    SELECT id, 1, 1, now(), 'retried' FROM new_job
)
INSERT INTO history (tenant_id, id, finished_at, state, kind, pool, payload, priority, run_at,
    created_at, max_attempts, attempt, failures, losses, tags, lineage, on_parent_failure,
    has_family, custom_id, batch_id, xid)
SELECT 1, lpad(to_hex($1::int + n), 32, '0')::uuid, now(),
    CASE n % 10 WHEN 0 THEN 'failed' ELSE 'succeeded' END, 'probe', 'probe', '{}', 4, now(), now(),
    3, 1, 0, 0, '{}', '{}', 'run', false, 'h' || n, $2::uuid, '3'
FROM new_job
"""


async def fill(connection: Connection) -> None:
    await connection.execute(FILL, ROWS, BATCH, timeout=110)


def ids(last_digit: int, beyond: int = 0) -> list[UUID]:
    """Some of the jobs whose number ends with the digit; those that are finished lie beyond."""
    return [UUID(int=beyond + 1000 + 10 * n + last_digit) for n in range(ASKED)]


@dataclass(slots=True)
class Verbs:
    """What is counted: each verb for about twenty jobs, on a connection in a transaction."""

    desk: Desk
    connection: Connection
    slot: SlotId
    spool: Spool = field(default_factory=Spool)

    def all(self) -> dict[str, Callable[[], Awaitable[object]]]:
        connection, tenant = self.connection, DEFAULT_TENANT
        waiting = [*ids(1), *ids(5), *ids(7), *ids(9)]
        return {
            "enqueue one": partial(self.enqueue, NewJob("probe", {})),
            "enqueue of all sorts": self.enqueue_all_sorts,
            "upload": self.upload,
            "promote_due": lambda: ledger.promote_due(
                connection, ASKED, now=NOW + timedelta(hours=1)
            ),
            "expire": lambda: ledger.expire(connection, ASKED, now=NOW + timedelta(days=1)),
            "claim": self.claim,
            "claim and complete": partial(self.claim_and_end, DONE),
            "claim and fail": partial(self.claim_and_end, BROKEN),
            "cancel": lambda: ledger.cancel(connection, tenant, waiting),
            "retry": lambda: ledger.retry(connection, tenant, ids(0, ROWS)),
            "discard": lambda: ledger.discard(connection, tenant, ids(0, ROWS), by="test"),
            "get live": lambda: lookup.get_many(connection, tenant, ids(1)),
            "get finished": lambda: lookup.get_many(connection, tenant, ids(0, ROWS)),
            "unannounced": lambda: pools.unannounced(connection, older_than_s=0.0),
            "release permits": partial(
                connection.execute,
                retention.QUERIES["release_permits"],
                *([1] * ASKED, [f"k{1000 + n}" for n in range(ASKED)], [1] * ASKED),
            ),
            "put a limit": lambda: limits.put(connection, tenant, "k1006", 2),
            "begin a request": lambda: idempotency.begin(connection, tenant, "new", b""),
            "forget requests": self.forget("prune_idempotency_keys"),
            "forget events": self.forget("prune_events_default"),
        }

    async def enqueue(self, *jobs: NewJob) -> None:
        # New names are looked for among all jobs of the batch: that grows with the batch.
        await ledger.enqueue(
            self.connection, DEFAULT_TENANT, jobs, kinds=self.desk.kinds, batch_id=NEW_BATCH
        )

    async def enqueue_all_sorts(self) -> None:
        jobs = []
        for n, (live, ended) in enumerate(zip(ids(1), ids(3, ROWS), strict=True)):
            jobs += [
                NewJob("probe", {}, depends_on=(str(live), str(ended))),
                NewJob("probe", {}, unique=Unique(f"k{1000 + n}"), custom_id=f"new {n}"),
                NewJob("probe", {}, concurrency_key=f"k{1006 + 10 * n}"),
            ]
        await self.enqueue(*jobs)

    async def upload(self) -> None:
        await batches.fill(
            self.connection, DEFAULT_TENANT, self.spool, kinds=self.desk.kinds, batch_id=NEW_BATCH
        )

    async def claim(self) -> None:
        await ledger.claim(self.connection, self.slot, "probe", ["probe"], ASKED)

    async def claim_and_end(self, ending: Completed | Failed) -> None:
        jobs = await ledger.claim(self.connection, self.slot, "probe", ["probe"], ASKED)
        assert len(jobs) == ASKED
        await ledger.record(
            self.connection,
            self.slot,
            [Ended(job, ending, 0.0) for job in jobs],
            kinds=self.desk.kinds,
            rng=self.desk.rng,
        )

    def forget(self, query: str) -> Callable[[], Awaitable[object]]:
        return lambda: self.connection.execute(retention.QUERIES[query], 30, ASKED, None)


@pytest.fixture(params=Belief)
async def verbs(desk: Desk, request: pytest.FixtureRequest) -> AsyncIterator[Verbs]:
    slot = await desk.slot()
    jobs = [NewJob("probe", {}, custom_id=f"new {n}") for n in range(ASKED)]
    async with desk.pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO batches (id, tenant_id, state)"
            " SELECT id, 1, 'running' FROM unnest($1::uuid[]) AS id",
            [BATCH, NEW_BATCH],
        )
        async with filled(connection, request.param, TABLES, fill):
            with spooled(*jobs) as spool:
                yield Verbs(desk, connection, slot, spool)
        await connection.execute("DELETE FROM batches")


async def test_no_verb_reads_more_than_its_share(verbs: Verbs) -> None:
    connection = verbs.connection
    read: dict[tuple[str, str], int] = {}
    for mode in PLAN_MODES:
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        for name, verb in verbs.all().items():
            read[name, mode] = await rows_read(connection, verb)
    assert {case: rows for case, rows in read.items() if rows > READ_MAX} == {}
    # The counting works: each of the claimed ones was found, and its job looked up.
    assert read["claim", PLAN_MODES[0]] >= 2 * ASKED
