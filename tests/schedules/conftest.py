"""A schedule's world: tickers that remember what they announced, and a slot that works."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from jobs import ledger, slots
from jobs.kinds import KindRegistry, load_kinds
from jobs.model import DEFAULT_TENANT, JsonValue, NewJob, SlotId
from jobs.outcomes import Completed
from jobs.results import Ended
from runtime.postgres import Pool
from schedules import store
from schedules.model import Every, Schedule, ScheduleSpec, Timing
from schedules.ticker import Ticker

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)


@dataclass(slots=True)
class World:
    """Everything a test of the ticker needs, on a real database."""

    pool: Pool
    kinds: KindRegistry
    announced: list[tuple[str, UUID]] = field(default_factory=list)
    _slot: SlotId | None = None

    def ticker(self) -> Ticker:
        """One more ticker."""
        return Ticker(self.pool, self.kinds, self._announce)

    async def _announce(self, ready: Mapping[str, Sequence[UUID]]) -> None:
        self.announced += [(pool, job_id) for pool, ids in ready.items() for job_id in ids]

    async def create(
        self,
        timing: Timing | None = None,
        *,
        name: str = "nightly",
        kind: str = "probe",
        now: datetime = NOON,
        **spec: object,
    ) -> Schedule:
        """A schedule of the default tenant, of every minute unless told otherwise."""
        wanted = ScheduleSpec(name, NewJob(kind, {}), timing or Every(60), **spec)  # type: ignore[arg-type] # as the test says
        async with self.pool.acquire() as connection:
            return await store.create(connection, DEFAULT_TENANT, wanted, now=now)

    async def get(self, schedule: Schedule) -> Schedule:
        async with self.pool.acquire() as connection:
            return await store.get(connection, DEFAULT_TENANT, schedule.id)

    async def outcomes(self, schedule: Schedule) -> list[tuple[datetime, str]]:
        """Its fires, oldest first."""
        async with self.pool.acquire() as connection:
            fires = await store.runs(connection, DEFAULT_TENANT, schedule.id, limit=1000)
        return [(fire.fire_at, fire.outcome.value) for fire in reversed(fires)]

    async def jobs(self) -> int:
        """How many jobs wait."""
        async with self.pool.acquire() as connection:
            count: int = await connection.fetchval("SELECT count(*) FROM jobs")
        return count

    async def events(self, type_: str) -> list[Mapping[str, JsonValue]]:
        async with self.pool.acquire() as connection:
            rows = await connection.fetch(
                "SELECT data FROM events WHERE type = $1 ORDER BY n", type_
            )
        return [row["data"] for row in rows]

    async def work(self, result: JsonValue = None) -> int:
        """Finish every job that waits, with this result."""
        async with self.pool.acquire() as connection:
            self._slot = self._slot or await slots.register(
                connection, supervisor_id=uuid4(), pool="probe", number=0, host="here", pid=1,
                cores=[0], kinds=["probe"],
            )  # fmt: skip
            claimed = await ledger.claim(connection, self._slot, "probe", ["probe"], 100)
            ended = [Ended(job, Completed(result)) for job in claimed]
            await ledger.record(
                connection, self._slot, ended, kinds=self.kinds, rng=random.Random(1)
            )
        return len(claimed)


@pytest.fixture
def world(db: Pool) -> World:
    return World(db, load_kinds())
