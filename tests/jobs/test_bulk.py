"""Spools and their way in by COPY: the same rows as one by one, all of them or none."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import anyio
import orjson
import pytest

from jobs import batches, ledger
from jobs.batches import NewBatch
from jobs.errors import JobsRefused
from jobs.kinds import load_kinds
from jobs.model import DEFAULT_TENANT, NewJob, Unique
from jobs.results import Ready
from jobs.spool import Spool, Terms
from jobs.states import BatchState
from tests.jobs.desk import Desk, probe, spooled

pytestmark = pytest.mark.anyio

# Every field that a plain job may have: at its default, at its bounds, in letters of all sizes.
PLAIN = (
    NewJob("probe", {}),
    NewJob(
        "probe", {"echo": ["\u00e9\U0001f40c", 1.5, None, {"a:b": '{["}'}]}, custom_id="n\u00e4me"
    ),
    NewJob("crawl", {"url": "https://example.org/"}, priority=9, tags=("a", "\u00fc", "")),
    NewJob("embed", {"texts": ["x" * 5000]}, priority=0, max_attempts=100, timeout_s=0.25),
    NewJob("probe", {"echo": 0}, callback_url="https://example.org/told", custom_id="last"),
)
# What differs between any two batches: identity and time.
_OWN = {"id", "job_id", "batch_id", "created_at", "run_at", "sort_at"}
_ROWS = {
    "jobs": """SELECT j.*, sort_at - run_at AS ahead, run_at - created_at AS delay FROM jobs AS j
        WHERE batch_id = $1 ORDER BY id""",
    "ready": """SELECT r.* FROM ready AS r JOIN jobs AS j ON j.id = r.job_id
        WHERE j.batch_id = $1 AND r.sort_at = j.sort_at ORDER BY job_id""",
}


async def _fill(desk: Desk, spool: Spool, batch_id: UUID | None = None) -> tuple[UUID, Ready]:
    async with desk.pool.acquire() as connection, connection.transaction():
        if batch_id is None:
            batch_id = await batches.create(connection, DEFAULT_TENANT, NewBatch())
        ready = await batches.fill(
            connection, DEFAULT_TENANT, spool, kinds=desk.kinds, batch_id=batch_id
        )
    return batch_id, ready


async def _rows(desk: Desk, table: str, batch_id: UUID) -> list[dict[str, Any]]:
    async with desk.pool.acquire() as connection:
        rows = await connection.fetch(_ROWS[table], batch_id)
    return [{name: value for name, value in row.items() if name not in _OWN} for row in rows]


async def test_copied_rows_are_those_that_enqueue_inserts(desk: Desk) -> None:
    with spooled(*PLAIN) as spool:
        assert spool.is_plain
        copied, _ = await _fill(desk, spool)
    async with desk.pool.acquire() as connection, connection.transaction():
        inserted = await batches.create(connection, DEFAULT_TENANT, NewBatch())
        await ledger.enqueue(connection, DEFAULT_TENANT, PLAIN, kinds=desk.kinds, batch_id=inserted)
    for table in _ROWS:
        rows = await _rows(desk, table, copied)
        assert len(rows) == len(PLAIN)
        assert rows == await _rows(desk, table, inserted)
    async with desk.pool.acquire() as connection:
        for batch_id in (copied, inserted):
            counts = (await batches.get(connection, DEFAULT_TENANT, batch_id)).counts
            assert (counts.total, counts.queued) == (len(PLAIN), len(PLAIN))


async def test_whom_to_wake_is_told_by_pool_in_order(desk: Desk) -> None:
    with spooled(*PLAIN) as spool:
        _, ready = await _fill(desk, spool)
    assert {pool: len(ids) for pool, ids in ready.items()} == {"probe": 3, "crawl": 1, "embed": 1}
    assert list(ready["probe"]) == sorted(ready["probe"])
    slot = await desk.slot()
    assert {job.id for job in await desk.claim(slot)} == set(ready["probe"])


async def test_a_job_that_is_not_plain_takes_all_through_the_ledger(desk: Desk) -> None:
    others = (
        probe(custom_id="child", depends_on=("n\u00e4me",)),
        probe(delay_s=60),
        probe(unique=Unique("k")),
        probe(concurrency_key="key"),
    )
    with spooled(*PLAIN, *others) as spool:
        assert not spool.is_plain
        batch_id, ready = await _fill(desk, spool)
    async with desk.pool.acquire() as connection:
        counts = (await batches.get(connection, DEFAULT_TENANT, batch_id)).counts
    assert (counts.total, counts.scheduled, counts.queued) == (9, 2, 7)
    assert len(ready["probe"]) == 5
    assert [row["payload"] for row in await _rows(desk, "jobs", batch_id)][1] == PLAIN[1].payload


async def test_a_name_given_twice_or_of_an_earlier_part_refuses_all(desk: Desk) -> None:
    twice = (probe(custom_id="a"), probe(), probe(custom_id="a"))
    with spooled(*twice) as spool, pytest.raises(JobsRefused, match="names job 0 already"):
        await _fill(desk, spool)
    async with desk.pool.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM batches") == 0
        batch_id = await batches.create(connection, DEFAULT_TENANT, NewBatch(BatchState.OPEN))
    with spooled(probe(custom_id="a")) as spool:
        await _fill(desk, spool, batch_id)
    later = spooled(probe(), probe(custom_id="a"))
    with later, pytest.raises(JobsRefused, match="earlier part") as refused:
        await _fill(desk, later, batch_id)
    assert [refusal.position for refusal in refused.value.refusals] == [1]
    async with desk.pool.acquire() as connection:
        assert await connection.fetchval("SELECT count(*) FROM jobs") == 1


@pytest.mark.parametrize("extra", [probe(), probe(unique=Unique("k"))], ids=["plain", "not plain"])
async def test_two_parts_with_one_name_at_once_are_one_part_and_one_refusal(
    desk: Desk, extra: NewJob
) -> None:
    async with desk.pool.acquire() as connection:
        batch_id = await batches.create(connection, DEFAULT_TENANT, NewBatch(BatchState.OPEN))
    refusals: list[JobsRefused] = []

    async def append(number: int) -> None:
        unique = extra.unique and replace(extra.unique, key=str(number))
        with spooled(replace(extra, unique=unique), probe(custom_id="same")) as spool:
            try:
                await _fill(desk, spool, batch_id)
            except JobsRefused as error:
                refusals.append(error)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(append, number)
    assert len(refusals) == 3
    async with desk.pool.acquire() as connection:
        assert (await batches.get(connection, DEFAULT_TENANT, batch_id)).counts.total == 2


def test_big_payloads_are_read_a_few_at_once() -> None:
    kind = load_kinds()["probe"]
    text = orjson.dumps({"echo": "x" * 256_000})
    with Spool() as spool:
        for _ in range(64):
            spool.add(Terms(kind), None, text)
        portions = list(spool.payloads())
    assert [text] * 64 == [payload for portion in portions for payload in portion]
    assert max(map(len, portions)) < 10


def test_payloads_beyond_the_memory_come_back_in_order() -> None:
    kind = load_kinds()["probe"]
    with Spool(in_memory_bytes=1000) as spool:
        for number in range(5000):
            spool.add(Terms(kind), None, orjson.dumps({"echo": "x" * (number % 97)}))
        sizes = [len(orjson.loads(text)["echo"]) for texts in spool.payloads() for text in texts]
        assert sizes == [number % 97 for number in range(5000)]
        assert [job.payload for job in spool.as_jobs()][96:98] == [
            {"echo": "x" * 96},
            {"echo": ""},
        ]
