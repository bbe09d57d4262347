"""Whether the ledger stays fast as it grows: the same verbs timed on an empty one and on one with
millions of jobs.

Starts two PostgreSQL of its own, fills one set by set, and times both in turns; every statement
timed is the product's. Filling takes minutes: a folder that is kept separates it from measuring.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import orjson

from bench.measure import middle, percentile
from jobs import batches, events, ledger, limits, lookup, pools, retention, slots
from jobs.events import EventScope
from jobs.kinds import KindRegistry, load_kinds
from jobs.ledger import Ended
from jobs.lookup import JobFilter
from jobs.model import DEFAULT_TENANT, NewJob, SlotId, TenantId
from jobs.outcomes import Completed
from jobs.states import JobState
from runtime.embedded import EmbeddedServers
from runtime.migrate import migrate
from runtime.postgres import Connection, Pool, open_pool
from runtime.settings import load_settings
from runtime.sql import load_queries

QUERIES = load_queries("bench", "growth")

DAYS = 7
SLICE = 250_000
SLICE_TIMEOUT_S = 300.0
JOBS_PER_BATCH = 1000
OPEN_BATCHES = 100
PARKED_SHARE = 10
CLAIM = 250
DRAINED = 20_000
LOOKUPS = 1000
REPEATS = 15
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Size:
    """How much lies in the ledger."""

    finished: int = 10_000_000
    queued: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure: `jobs/s` is better high, `ms` is better low."""

    name: str
    value: float
    unit: str


async def fill(connection: Connection, size: Size, say: Callable[[str], None]) -> None:
    """Put that many finished and queued jobs into the ledger, with their events, attempts and
    batches.
    """
    await connection.execute(QUERIES["hurry"])
    await connection.execute(QUERIES["make_days"], DAYS)
    for query in ("fill_history", "fill_events"):
        for first in range(0, size.finished, SLICE):
            last = min(first + SLICE, size.finished)
            await connection.execute(
                QUERIES[query], first, last, size.finished, DAYS, timeout=SLICE_TIMEOUT_S
            )
            say(f"{query} {last:,}")
    await connection.execute(QUERIES["fill_attempts"], timeout=SLICE_TIMEOUT_S)
    await connection.execute(QUERIES["fill_batches"], size.finished // (10 * JOBS_PER_BATCH))
    await connection.execute(QUERIES["fill_batch_counts"])
    per_batch = -(-size.queued // OPEN_BATCHES)
    await connection.execute(QUERIES["fill_open_batches"], OPEN_BATCHES)
    await connection.execute(QUERIES["fill_open_counts"], per_batch)
    for first in range(0, size.queued, SLICE):
        last = min(first + SLICE, size.queued)
        await connection.execute(
            QUERIES["fill_queued"], first, last, per_batch, timeout=SLICE_TIMEOUT_S
        )
        say(f"fill_queued {last:,}")
    await connection.execute(QUERIES["fill_parked"], size.queued // PARKED_SHARE)
    await connection.execute(QUERIES["hurry_no_more"])


@dataclass(slots=True)
class Bench:
    """The verbs to be timed, on one connection."""

    connection: Connection
    kinds: KindRegistry
    slot: SlotId
    rng: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - jitter of retries

    async def measure(self) -> list[Measure]:
        """Time each verb; what they do to the ledger is small against its size."""
        enqueued = time.perf_counter()
        for _ in range(0, DRAINED, 1000):
            await self._enqueue(1000)
        enqueue_s = time.perf_counter() - enqueued
        found = [Measure("enqueue, 1000 at a time", DRAINED / enqueue_s, "jobs/s")]
        found += await self._drain()
        found += await self._lookups()
        for name, work in self._verbs().items():
            found += await self._times(name, work, REPEATS)
        return found

    async def _enqueue(self, count: int) -> None:
        jobs = [NewJob("probe", {"echo": "x"})] * count
        await ledger.enqueue(self.connection, DEFAULT_TENANT, jobs, kinds=self.kinds)

    async def _drain(self) -> list[Measure]:
        """Claim and record in batches: what a slot does with jobs that do nothing."""
        claims: list[float] = []
        records: list[float] = []
        done = 0
        while done < DRAINED:
            began = time.perf_counter()
            jobs = await ledger.claim(self.connection, self.slot, "probe", ["probe"], CLAIM)
            claimed = time.perf_counter()
            ended = [Ended(job, Completed(None), 0.0) for job in jobs]
            await ledger.record(self.connection, self.slot, ended, kinds=self.kinds, rng=self.rng)
            claims.append(claimed - began)
            records.append(time.perf_counter() - claimed)
            done += len(jobs)
        return [
            Measure("claim and record", done / (sum(claims) + sum(records)), "jobs/s"),
            *_order(f"claim {CLAIM}", claims),
            *_order(f"record {CLAIM}", records),
        ]

    async def _lookups(self) -> list[Measure]:
        found: list[Measure] = []
        for state in ("finished", "queued"):
            rows = await self.connection.fetch(QUERIES[f"some_{state}"], LOOKUPS)
            times = [await self._time(partial(self._get, row[0])) for row in rows]
            found += _order(f"get a {state} job", times)
        rows = await self.connection.fetch(QUERIES["backlog_batches"], OPEN_BATCHES)
        for name, read in (("status", batches.get), ("results", batches.results)):
            times = [await self._time(partial(self._read_batch, read, row[0])) for row in rows]
            found += _order(f"{name} of a batch", times)
        return found

    async def _get(self, job_id: UUID) -> None:
        await lookup.get(self.connection, DEFAULT_TENANT, job_id)

    async def _read_batch(
        self, read: Callable[[Connection, TenantId, UUID], Awaitable[object]], batch_id: UUID
    ) -> None:
        await read(self.connection, DEFAULT_TENANT, batch_id)

    def _verbs(self) -> dict[str, Callable[[], Awaitable[object]]]:
        connection, tenant = self.connection, DEFAULT_TENANT

        def page(name: str, job_filter: JobFilter) -> tuple[str, Callable[[], Awaitable[object]]]:
            return f"list {name}", lambda: lookup.list_jobs(connection, tenant, job_filter)

        return dict((
            page("all", JobFilter()),
            page("of a kind", JobFilter(kind="embed")),
            page("tagged", JobFilter(tag="nightly")),
            *(page(state, JobFilter(state=state)) for state in JobState),
            ("enqueue one", lambda: self._enqueue(1)),
            ("list batches", lambda: batches.list_batches(connection, tenant)),
            ("events, newest", self._newest_events),
            ("finish_due", lambda: batches.finish_due(connection)),
            ("promote_due", lambda: ledger.promote_due(connection, 5000)),
            ("expire", lambda: ledger.expire(connection, 5000)),
            ("unannounced", lambda: pools.unannounced(connection, older_than_s=1.0)),
            ("audit of limits", lambda: limits.audit(connection)),
            ("ended slots", lambda: slots.ended_holding(connection)),
            ("cancels", lambda: slots.beat(connection, {self.slot: slots.SlotState.LIVE})),
            ("pools", lambda: pools.list_pools(connection, ["probe"], kinds=self.kinds)),
            ("retention, nothing due", lambda: retention.prune(connection, days=30)),
        ))  # fmt: skip

    async def _newest_events(self) -> None:
        cursor = await events.latest(self.connection)
        await events.after(self.connection, EventScope(DEFAULT_TENANT), cursor)

    async def _times(
        self, name: str, work: Callable[[], Awaitable[object]], repeats: int
    ) -> list[Measure]:
        return _order(name, [await self._time(work) for _ in range(repeats)])[:1]

    @staticmethod
    async def _time(work: Callable[[], Awaitable[object]]) -> float:
        began = time.perf_counter()
        await work()
        return time.perf_counter() - began


def _order(name: str, seconds: Sequence[float]) -> list[Measure]:
    return [
        Measure(f"{name}, p{percent}", percentile(seconds, percent) * 1000, "ms")
        for percent in (50, 99)
        if seconds
    ]


@asynccontextmanager
async def open_ledger(data_dir: Path) -> AsyncIterator[Pool]:
    """The ledger of a data directory, made when there is none, for a block."""
    servers = EmbeddedServers(data_dir, ["postgres"])
    await servers.start()
    try:
        url = servers.database_url
        await migrate(url or "")
        settings = load_settings(data_dir=data_dir, database_url=url, redis_url="redis://unused")
        # Planned as the API plans its statements.
        pool = await open_pool(settings, role="bench", size=2, generic_plans=True)
        yield pool
        await pool.close()
    finally:
        await servers.stop()


async def fill_both(folder: Path, size: Size, say: Callable[[str], None]) -> None:
    """One ledger without a past, with as many jobs as are drained, and one of that size."""
    as_drained = Size(finished=0, queued=3 * DRAINED)
    for name, wanted in (("empty", as_drained), ("grown", size)):
        async with open_ledger(folder / name) as pool, pool.acquire() as connection:
            await fill(connection, wanted, say)
            say(f"{name}: {await connection.fetchval(QUERIES['sizes'])}")


async def compare(folder: Path, size: Size, say: Callable[[str], None]) -> list[dict[str, object]]:
    """Measure both in turns; answers one row a measure with the medians of both and their ratio."""
    async with open_ledger(folder / "empty") as empty, open_ledger(folder / "grown") as grown:
        found: dict[Pool, list[list[Measure]]] = {empty: [], grown: []}
        for number in range(ROUNDS + 1):
            for pool, rounds in found.items():
                rounds.append(await _measure(pool))
            say(f"round {number} of {ROUNDS}")
        # The first one has filled the caches.
        return _compare(size, _medians(found[empty][1:]), _medians(found[grown][1:]))


def _medians(rounds: Sequence[Sequence[Measure]]) -> list[Measure]:
    grouped: dict[tuple[str, str], list[float]] = {}
    for measure in chain.from_iterable(rounds):
        grouped.setdefault((measure.name, measure.unit), []).append(measure.value)
    return [Measure(name, middle(values), unit) for (name, unit), values in grouped.items()]


async def _measure(pool: Pool) -> list[Measure]:
    async with pool.acquire() as connection:
        return await (await _bench(connection)).measure()


async def _bench(connection: Connection) -> Bench:
    kinds = load_kinds(())
    slot = await slots.register(
        connection,
        supervisor_id=uuid4(),
        pool="probe",
        number=0,
        host="bench",
        pid=1,
        cores=[0],
        kinds=["probe"],
    )
    return Bench(connection, kinds, slot)


def _compare(
    size: Size, empty: Sequence[Measure], grown: Sequence[Measure]
) -> list[dict[str, object]]:
    before = {measure.name: measure.value for measure in empty}
    settings = {"finished": size.finished, "queued": size.queued}
    rows: list[dict[str, object]] = []
    for measure in grown:
        first = before.get(measure.name)
        ratio = None if first is None else measure.value / first
        rows.append(
            {
                "measure": measure.name,
                "system": "xnai",
                "settings": settings,
                "value": measure.value,
                "unit": measure.unit,
                "empty": first,
                "ratio": ratio,
            }
        )
    return rows


async def run(asked: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Do what was asked for; nothing is compared by a run that only fills."""

    def say(line: str) -> None:
        sys.stderr.write(f"{time.strftime('%X')} {line}\n")

    size = Size(asked.finished, asked.queued)
    if asked.step != "measure":
        await fill_both(folder, size, say)
    return await compare(folder, size, say) if asked.step != "fill" else []


def main() -> None:
    """Print the table and write it as a JSON list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=10_000_000)
    parser.add_argument("--queued", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="a folder that is kept, for one step at a time")
    parser.add_argument("--step", choices=("fill", "measure"), help="both when left out")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.step and asked.data is None:
        parser.error("--step needs --data: the other step must find what this one leaves")
    if asked.data is not None:
        rows = anyio.run(run, asked, asked.data)
    else:
        with tempfile.TemporaryDirectory(prefix="xnai-growth-") as folder:
            rows = anyio.run(run, asked, Path(folder))
    for row in rows:
        empty, ratio = row["empty"], row["ratio"]
        sys.stdout.write(f"{row['measure']:34} {empty or 0:12.3f} {row['value']:12.3f} ")
        sys.stdout.write(f"{row['unit']:7} x{ratio or 0:.2f}\n")
    if asked.out is not None:
        asked.out.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
